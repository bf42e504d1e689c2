mod dns;
mod listen;
mod tls;
mod verdict;
mod wire;

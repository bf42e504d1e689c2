mod dns;
mod listen;
mod stream;
mod tls;
mod verdict;
mod wire;

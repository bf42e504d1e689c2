//! What a roster change and its push cost a server in CPU time: changes the name of one contact over and over.
//!
//! `roster-pushes --server HOST:PORT --domain D --ca FILE --user U --password P --server-pid PID --seconds S --json FILE`
//!
//! `cargo xtask bench` runs it against stores with few and with many accounts.

use std::collections::HashMap;
use std::error::Error;
use std::fs;
use std::time::{Duration, Instant};

use trunkline_client::{Client, Login, Target, Trust};

const PATIENCE: Duration = Duration::from_secs(10);

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let options: HashMap<&str, &str> =
        arguments.chunks_exact(2).map(|pair| (pair[0].trim_start_matches("--"), pair[1].as_str())).collect();
    let option = |name: &str| options.get(name).copied().ok_or(format!("--{name} is missing"));
    let trust = Trust::pem_file(option("ca")?.as_ref())?;
    let target = Target::new(option("server")?.parse()?, option("domain")?).trust(trust);
    let mut client = Client::connect(&target, &Login::new(option("user")?, option("password")?)).await?;
    client.iq("get", "", "<query xmlns='jabber:iq:roster'/>").await?;
    let (pid, limit) = (option("server-pid")?, Duration::from_secs_f64(option("seconds")?.parse()?));
    for n in 0..50 {
        change(&mut client, n).await?;
    }
    let (begin, cpu) = (Instant::now(), cpu(pid)?);
    let mut pushes = 0u32;
    while begin.elapsed() < limit {
        change(&mut client, pushes).await?;
        pushes += 1;
    }
    let spent = self::cpu(pid)?.saturating_sub(cpu);
    let seconds = begin.elapsed().as_secs_f64();
    client.close().await?;
    let each = spent.as_secs_f64() * 1e6 / f64::from(pushes);
    let report = format!(
        "{{\"tool\":\"roster-pushes\",\"results\":{{\"pushes\":{pushes},\"seconds\":{seconds:.3},\
         \"server_cpu_us_per_push\":{each:.3}}}}}\n"
    );
    fs::write(option("json")?, report)?;
    Ok(())
}

/// One change, its result and its push (RFC 6121 s.2.1.6), which is answered.
async fn change(client: &mut Client, n: u32) -> Result<(), Box<dyn Error>> {
    let item = format!("<item jid='contact@{}' name='name {n}'/>", domain(client));
    let query = format!("<query xmlns='jabber:iq:roster'>{item}</query>");
    client.iq("set", "", &query).await?;
    let push = client
        .expect("a roster push", PATIENCE, |it| it.root().attr("type").as_deref() == Some("set"))
        .await?;
    let id = push.root().attr("id").unwrap_or_default();
    client.send(format!("<iq type='result' id='{id}'/>").as_bytes()).await?;
    Ok(())
}

fn domain(client: &Client) -> &str {
    client.bare_jid().rsplit('@').next().unwrap_or_default()
}

/// CPU time of all threads of a process, from the kernel's accounting.
fn cpu(pid: &str) -> Result<Duration, Box<dyn Error>> {
    let mut sum = 0;
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = fs::read_to_string(thread?.path().join("schedstat"))?;
        sum += text.split(' ').next().unwrap_or_default().parse::<u64>()?;
    }
    Ok(Duration::from_nanos(sum))
}

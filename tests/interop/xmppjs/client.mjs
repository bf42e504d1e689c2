// xmpp.js, unmodified, doing what libraries.py asks for: `node client.mjs SCENARIO '{"domain": ...}'`.
//
// Prints one line of JSON at the end: {"ok": true, "note": "..."} or {"ok": false, "error": "..."}.

import { createRequire } from "node:module";
import net from "node:net";
import { client, xml } from "@xmpp/client";
import { WebSocket } from "ws";

const require = createRequire(import.meta.url);
const [scenario, json] = process.argv.slice(2);
const world = JSON.parse(json);

// The names of the test are known to its own name server only.
const dns = require("node:dns");
const lookup = dns.lookup;
dns.lookup = (name, options, done) => {
  if (typeof options === "function") [options, done] = [{}, options];
  if (name !== world.domain) return lookup(name, options, done);
  return options.all ? done(null, [{ address: world.address, family: 4 }]) : done(null, world.address, 4);
};
globalThis.WebSocket = WebSocket;

const PATIENCE = 20_000;
const everybody = [];

const delay = (ms) => new Promise((done) => setTimeout(done, ms));

function check(fact, what) {
  if (!fact) throw new Error(what);
}

/** Waits until `look` returns something. */
async function until(what, look, patience = PATIENCE) {
  for (const end = Date.now() + patience; Date.now() < end; await delay(20)) {
    const found = look();
    if (found) return found;
  }
  throw new Error(`no ${what} within ${patience / 1000} s`);
}

/** A client that keeps what went in and out. */
class Person {
  constructor(name, { agent = crypto.randomUUID(), credentials } = {}) {
    const identity = credentials ? { credentials } : { username: name, password: world.password };
    this.agent = agent;
    this.xmpp = client({
      service: world.service,
      domain: world.domain,
      resource: "xmppjs",
      userAgent: userAgent(agent),
      ...identity,
    });
    Object.assign(this, { inbox: [], received: [], sent: [], errors: [], resumed: 0 });
    this.xmpp.on("stanza", (stanza) => this.inbox.push(stanza));
    this.xmpp.on("element", (element) => this.received.push(element));
    this.xmpp.on("send", (element) => this.sent.push(element));
    this.xmpp.on("error", (error) => this.errors.push(error));
    this.xmpp.streamManagement.on("resumed", () => this.resumed++);
    this.xmpp.fast.saveToken = async (token) => {
      this.token = token;
    };
    everybody.push(this);
  }

  get jid() {
    return this.xmpp.jid.toString();
  }

  async enter() {
    await Promise.race([
      this.xmpp.start(),
      delay(PATIENCE).then(() => Promise.reject(new Error(`not signed in: ${this.errors.join("; ")}`))),
    ]);
    return this;
  }

  async available() {
    await this.xmpp.send(xml("presence"));
    await this.expect("own presence", (x) => x.is("presence") && x.attrs.from === this.jid);
    return this;
  }

  async expect(what, match) {
    const found = await until(`${what} for ${this.xmpp.jid}`, () => this.inbox.find(match));
    this.inbox.splice(this.inbox.indexOf(found), 1);
    return found;
  }

  request(type, payload, to) {
    return this.xmpp.iqCaller.request(xml("iq", { type, to }, payload), PATIENCE);
  }

  async say(to, text) {
    const id = crypto.randomUUID();
    await this.xmpp.send(xml("message", { to, type: "chat", id }, xml("body", {}, text)));
    return id;
  }
}

function userAgent(id) {
  return xml("user-agent", { id }, xml("software", {}, "xmpp.js"), xml("device", {}, "the test"));
}

/** A line to the server, for all who connect from now on; it can be cut as a lost network would. */
async function relay() {
  const service = new URL(world.service.replace(/^[a-z]+:/, "http:"));
  const target = { host: world.address, port: Number(service.port) };
  const sockets = new Set();
  const server = net.createServer((near) => {
    const far = net.connect(target);
    for (const [one, other] of [[near, far], [far, near]]) {
      sockets.add(one);
      one.on("error", () => {}).on("close", () => other.destroy());
      one.pipe(other);
    }
  });
  await new Promise((done) => server.listen(0, "127.0.0.1", done));
  world.service = world.service.replace(`:${service.port}`, `:${server.address().port}`);
  world.address = "127.0.0.1";
  return { cut: () => sockets.forEach((socket) => socket.resetAndDestroy()) };
}

const message = (id) => (x) => x.is("message") && x.attrs.type !== "error" && x.attrs.id === id;

/** What is inside a carbon. */
function copied(stanza, direction) {
  return stanza.getChild(direction, "urn:xmpp:carbons:2")?.getChild("forwarded", "urn:xmpp:forward:0")?.getChild("message");
}

const SASL2 = "urn:xmpp:sasl:2";

const scenarios = {
  /** SASL2 with Bind 2 and stream management in one request; roster, ping, presence; a clean end. */
  async sign_in() {
    const romeo = await new Person("romeo").enter();
    const asked = romeo.sent.find((x) => x.is("authenticate", SASL2));
    check(asked?.getChild("bind", "urn:xmpp:bind:0"), "the client did not ask for Bind 2: SASL2 was not offered whole");
    const success = romeo.received.find((x) => x.is("success", SASL2));
    const bound = success.getChild("bound", "urn:xmpp:bind:0");
    check(bound?.getChild("enabled", "urn:xmpp:sm:3"), "no stream management inside <bound/>");
    check(/^romeo@.+\/xmppjs/.test(success.getChildText("authorization-identifier")), "no full address with its tag");
    await romeo.available();
    await romeo.request("get", xml("ping", "urn:xmpp:ping"), world.domain);
    const roster = await romeo.request("get", xml("query", "jabber:iq:roster"));
    check(roster.getChild("query", "jabber:iq:roster"), "no roster");
    await romeo.xmpp.stop();
    return `${asked.attrs.mechanism}, ${romeo.jid}`;
  },

  /** A wrong password is refused by its name. */
  async wrong_password() {
    const romeo = new Person("romeo");
    const credentials = { username: "romeo", password: "wrong" };
    const other = new Person("romeo", {
      credentials: (authenticate) => authenticate(credentials, "SCRAM-SHA-1", userAgent(romeo.agent)),
    });
    const error = await other.xmpp.start().then(
      () => null,
      (error) => error,
    );
    check(error?.condition === "not-authorized", `not refused as not-authorized: ${error}`);
  },

  /** A token from a login with the password signs in without it, in one request; a wrong one does not. */
  async fast() {
    const romeo = await new Person("romeo").enter();
    const { token } = await until("token", () => romeo.token && romeo);
    await romeo.xmpp.stop();
    const withToken = (token) => ({
      agent: romeo.agent,
      credentials: (authenticate) => authenticate({ username: "romeo", token }, null, userAgent(romeo.agent)),
    });
    const again = await new Person("romeo", withToken(token)).enter();
    const asked = again.sent.filter((x) => x.getNS() === SASL2);
    check(asked.length === 1 && asked[0].attrs.mechanism === token.mechanism, `asked ${asked.join("")}`);
    check(!again.received.some((x) => x.is("challenge", SASL2)), "the token took a challenge");
    await again.available();
    await again.xmpp.stop();
    const wrong = new Person("romeo", withToken({ ...token, token: `${token.token}x` }));
    await wrong.xmpp.start().catch(() => {});
    check(wrong.xmpp.status !== "online", "a wrong token got in");
    const failure = wrong.received.find((x) => x.is("failure", SASL2));
    check(failure?.getChild("not-authorized"), `refused otherwise: ${failure}`);
    return token.mechanism;
  },

  /** The connection is cut; the client comes back by itself, resumes inline and misses nothing. */
  async resumption() {
    const juliet = await new Person("juliet").enter();
    const line = await relay();
    const romeo = await new Person("romeo").enter();
    await Promise.all([romeo.available(), juliet.available()]);
    const before = romeo.jid;
    const cut = new Promise((done) => romeo.xmpp.once("disconnect", done));
    line.cut();
    await cut;
    const ids = [];
    for (let n = 0; n < 5; n++) ids.push(await juliet.say(before, `during the cut, ${n}`));
    await until("resumption", () => romeo.resumed);
    for (const id of ids) await romeo.expect("a message of the cut", message(id));
    check(romeo.jid === before, "another address after the resumption");
    const id = await romeo.say(juliet.jid, "back");
    await juliet.expect("a message after it", message(id));
    await delay(300);
    check(!romeo.inbox.some((x) => ids.includes(x.attrs.id)), "something came twice");
    const asked = romeo.sent.filter((x) => x.is("authenticate", SASL2)).at(-1);
    check(asked.getChild("resume", "urn:xmpp:sm:3"), "not resumed inside SASL2");
    return `with ${asked.attrs.mechanism}`;
  },

  /** Carbons of what is sent and received; then a device that was away reads it all, page by page. */
  async sync() {
    const [phone, laptop, juliet] = await Promise.all(["romeo", "romeo", "juliet"].map((name) => new Person(name).enter()));
    await Promise.all([phone, laptop, juliet].map((person) => person.available()));
    for (const device of [phone, laptop]) await device.request("set", xml("enable", "urn:xmpp:carbons:2"));
    const said = [];
    for (let n = 0; n < 6; n++) {
      const [from, to] = n % 2 ? [juliet, phone] : [phone, juliet];
      const id = await from.say(to.jid, `line ${n}`);
      said.push(id);
      await to.expect("message", message(id));
      const direction = n % 2 ? "received" : "sent";
      await laptop.expect(`copy of what was ${direction}`, (x) => copied(x, direction)?.attrs.id === id);
    }
    const late = await new Person("romeo").enter();
    const history = [];
    const form = xml("x", { xmlns: "jabber:x:data", type: "submit" },
      xml("field", { var: "FORM_TYPE" }, xml("value", {}, "urn:xmpp:mam:2")),
      xml("field", { var: "with" }, xml("value", {}, juliet.jid.split("/")[0])));
    let pages = 0;
    for (let before = "", complete = false; !complete; pages++) {
      const set = xml("set", "http://jabber.org/protocol/rsm", xml("max", {}, "4"), xml("before", {}, before));
      const answer = await late.request("set", xml("query", { xmlns: "urn:xmpp:mam:2", queryid: `p${pages}` }, form, set));
      const page = late.inbox
        .map((x) => x.getChild("result", "urn:xmpp:mam:2"))
        .filter((x) => x?.attrs.queryid === `p${pages}`);
      history.unshift(...page.map((x) => x.getChild("forwarded").getChild("message").attrs.id));
      const fin = answer.getChild("fin", "urn:xmpp:mam:2");
      complete = fin.attrs.complete === "true";
      before = fin.getChild("set").getChildText("first") ?? "";
      check(pages < 100, "the archive does not end");
    }
    check(said.join() === history.slice(-6).join(), `the archive has ${history.slice(-6)}, not ${said}`);
    check(new Set(history).size === history.length, "a message stands twice in the archive");
    return `${history.length} messages in ${pages} pages`;
  },

  /** An avatar (XEP-0084) is published, and read by somebody else of the same server. */
  async avatar() {
    const [juliet, romeo] = await Promise.all([new Person("juliet").enter(), new Person("romeo").enter()]);
    const picture = Buffer.from(world.picture, "base64");
    const id = Buffer.from(await crypto.subtle.digest("SHA-1", picture)).toString("hex");
    const publish = (node, payload) =>
      juliet.request("set", xml("pubsub", "http://jabber.org/protocol/pubsub",
        xml("publish", { node }, xml("item", { id }, payload)),
        xml("publish-options", {}, xml("x", { xmlns: "jabber:x:data", type: "submit" },
          xml("field", { var: "FORM_TYPE" }, xml("value", {}, "http://jabber.org/protocol/pubsub#publish-options")),
          xml("field", { var: "pubsub#access_model" }, xml("value", {}, "open"))))));
    await publish("urn:xmpp:avatar:data", xml("data", "urn:xmpp:avatar:data", world.picture));
    await publish("urn:xmpp:avatar:metadata", xml("metadata", "urn:xmpp:avatar:metadata",
      xml("info", { bytes: `${picture.length}`, id, type: "image/png" })));
    const read = async (node) => {
      const answer = await romeo.request("get",
        xml("pubsub", "http://jabber.org/protocol/pubsub", xml("items", { node, max_items: "1" })),
        juliet.jid.split("/")[0]);
      return answer.getChild("pubsub").getChild("items").getChild("item");
    };
    const info = (await read("urn:xmpp:avatar:metadata")).getChild("metadata").getChild("info");
    check(info.attrs.id === id, `the metadata are of ${info.attrs.id}`);
    const data = (await read("urn:xmpp:avatar:data")).getChild("data").text();
    check(data === world.picture, "another picture");
  },

  /** A push service is enabled (XEP-0357) and the device goes away; a message is sent to it. Tells the node. */
  async push() {
    const [romeo, juliet] = await Promise.all([new Person("romeo").enter(), new Person("juliet").enter()]);
    const node = `xmppjs-${crypto.randomUUID()}`;
    await romeo.available();
    await romeo.request("set", xml("enable", { xmlns: "urn:xmpp:push:0", jid: `push.${world.domain}`, node }));
    const to = romeo.jid.split("/")[0];
    await romeo.xmpp.stop();
    await juliet.say(to, "wake up");
    await juliet.request("get", xml("ping", "urn:xmpp:ping"), world.domain);
    return node;
  },
};

try {
  const note = await Promise.race([
    scenarios[scenario](),
    delay(60_000).then(() => Promise.reject(new Error("not done within 60 s"))),
  ]);
  console.log(JSON.stringify({ ok: true, note: note ?? "" }));
} catch (error) {
  const last = everybody.map((person) => `${person.xmpp.jid}: ${person.received.slice(-3).join(" ").slice(0, 600)}`);
  console.log(JSON.stringify({ ok: false, error: `${error.message ?? error}\n  ${last.join("\n  ")}` }));
}
process.exit(0);

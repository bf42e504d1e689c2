//! Every namespace and service discovery feature the server speaks, in one place.
//!
//! A name is the function, not the number: `CARBONS`, not `XEP0280`. Features that are not namespaces of an
//! element (`+notify`, `#extended`) stand beside the namespace they extend.

// ---- Streams, login, sessions -----------------------------------------------------------------------

/// RFC 6120 s.4.8.1: the stream element itself and its features and errors.
pub const STREAMS: &str = "http://etherx.jabber.org/streams";
/// RFC 6120 s.4.8.2: content namespace of client streams, and the one all stanzas are read in.
pub const CLIENT: &str = "jabber:client";
/// RFC 6120 s.4.8.2: content namespace of server-to-server streams.
pub const SERVER: &str = "jabber:server";
/// XEP-0114 Jabber Component Protocol: content namespace of component streams.
pub const COMPONENT: &str = "jabber:component:accept";
/// The namespace that the prefix `xml` is bound to (`xml:lang`).
pub const XML: &str = "http://www.w3.org/XML/1998/namespace";
/// The namespace that the prefix `xmlns` is bound to.
pub const XMLNS: &str = "http://www.w3.org/2000/xmlns/";
/// RFC 6120 s.4.9.3: conditions of stream errors.
pub const STREAM_ERRORS: &str = "urn:ietf:params:xml:ns:xmpp-streams";
/// RFC 6120 s.8.3.3: conditions of stanza errors.
pub const STANZA_ERRORS: &str = "urn:ietf:params:xml:ns:xmpp-stanzas";
/// RFC 6120 s.5: STARTTLS.
pub const TLS: &str = "urn:ietf:params:xml:ns:xmpp-tls";
/// RFC 6120 s.6: SASL.
pub const SASL: &str = "urn:ietf:params:xml:ns:xmpp-sasl";
/// RFC 6120 s.7: resource binding.
pub const BIND: &str = "urn:ietf:params:xml:ns:xmpp-bind";
/// RFC 3921 s.3: the session request that old clients still send.
pub const SESSION: &str = "urn:ietf:params:xml:ns:xmpp-session";
/// RFC 7395 s.3.3: framing elements of WebSocket streams.
pub const FRAMING: &str = "urn:ietf:params:xml:ns:xmpp-framing";
/// XEP-0124 BOSH: the `<body/>` wrapper.
pub const BOSH: &str = "http://jabber.org/protocol/httpbind";
/// XEP-0206 XMPP over BOSH: attributes of the wrapper.
pub const XBOSH: &str = "urn:xmpp:xbosh";
/// XEP-0156: host-meta link relation of a BOSH endpoint.
pub const ALT_BOSH: &str = "urn:xmpp:alt-connections:xbosh";
/// XEP-0156: host-meta link relation of a WebSocket endpoint.
pub const ALT_WEBSOCKET: &str = "urn:xmpp:alt-connections:websocket";
/// XEP-0487 Host Meta 2: direct TLS for clients.
pub const ALT_TLS: &str = "urn:xmpp:alt-connections:tls";
/// XEP-0487 Host Meta 2: direct TLS for servers.
pub const ALT_S2S_TLS: &str = "urn:xmpp:alt-connections:s2s-tls";
/// XEP-0440 SASL Channel-Binding Type Capability.
pub const SASL_CB: &str = "urn:xmpp:sasl-cb:0";
/// XEP-0388 Extensible SASL Profile.
pub const SASL2: &str = "urn:xmpp:sasl:2";
/// XEP-0386 Bind 2.
pub const BIND2: &str = "urn:xmpp:bind:0";
/// XEP-0484 Fast Authentication Streamlining Tokens.
pub const FAST: &str = "urn:xmpp:fast:0";
/// XEP-0480 SASL Upgrade Tasks.
pub const SASL_UPGRADE: &str = "urn:xmpp:sasl:upgrade:0";
/// XEP-0480: the SCRAM upgrade task.
pub const SCRAM_UPGRADE: &str = "urn:xmpp:scram-upgrade:0";
/// XEP-0509 Initial Authentication Pipelining.
pub const PIPELINING: &str = "urn:xmpp:iap:0";
/// XEP-0198 Stream Management.
pub const SM: &str = "urn:xmpp:sm:3";
/// XEP-0352 Client State Indication.
pub const CSI: &str = "urn:xmpp:csi:0";
/// XEP-0478 Stream Limits Advertisement.
pub const STREAM_LIMITS: &str = "urn:xmpp:stream-limits:0";
/// XEP-0077: stream feature announcing in-band registration.
pub const REGISTER_FEATURE: &str = "http://jabber.org/features/iq-register";
/// XEP-0237 Roster Versioning: stream feature.
pub const ROSTER_VERSIONING: &str = "urn:xmpp:features:rosterver";
/// RFC 6121 s.3.4.1: stream feature announcing pre-approval of subscriptions.
pub const PRE_APPROVAL: &str = "urn:xmpp:features:pre-approval";
/// XEP-0078 Non-SASL Authentication: known only in order to refuse it by name.
pub const LEGACY_AUTH: &str = "jabber:iq:auth";
/// XEP-0494 Client Access Management.
pub const CLIENT_ACCESS: &str = "urn:xmpp:cam:0";

// ---- Server to server -------------------------------------------------------------------------------

/// XEP-0220 Server Dialback.
pub const DIALBACK: &str = "jabber:server:dialback";
/// XEP-0220 s.2.3: stream feature announcing dialback.
pub const DIALBACK_FEATURE: &str = "urn:xmpp:features:dialback";
/// XEP-0288 Bidirectional Server-to-Server Connections: the request.
pub const BIDI: &str = "urn:xmpp:bidi";
/// XEP-0288: the stream feature.
pub const BIDI_FEATURE: &str = "urn:xmpp:features:bidi";
/// XEP-0355 Namespace Delegation.
pub const DELEGATION: &str = "urn:xmpp:delegation:2";
/// XEP-0356 Privileged Entity.
pub const PRIVILEGE: &str = "urn:xmpp:privilege:2";
/// XEP-0157 Contact Addresses: FORM_TYPE.
pub const SERVER_INFO: &str = "http://jabber.org/network/serverinfo";
/// XEP-0485 PubSub Server Information.
pub const PUBSUB_SERVER_INFO: &str = "urn:xmpp:serverinfo:0";
/// XEP-0455 Service Outage Status.
pub const OUTAGE: &str = "urn:xmpp:sos:0";
/// XEP-0504 Data Policy.
pub const DATA_POLICY: &str = "urn:xmpp:data-policy:0";
/// XEP-0489 Reporting Account Affiliations.
pub const AFFILIATION_REPORT: &str = "urn:xmpp:raa:0";
/// XEP-0506 No-reply JIDs.
pub const NO_REPLY: &str = "urn:xmpp:noreply:0";

// ---- Discovery and small services -------------------------------------------------------------------

/// XEP-0030 Service Discovery: what an entity is and can do.
pub const DISCO_INFO: &str = "http://jabber.org/protocol/disco#info";
/// XEP-0030 Service Discovery: what belongs to an entity.
pub const DISCO_ITEMS: &str = "http://jabber.org/protocol/disco#items";
/// XEP-0115 Entity Capabilities.
pub const CAPS: &str = "http://jabber.org/protocol/caps";
/// XEP-0390 Entity Capabilities 2.0.
pub const CAPS2: &str = "urn:xmpp:caps";
/// XEP-0390: stream feature form of caps 2.
pub const CAPS2_OPTIMIZE: &str = "urn:xmpp:caps:optimize";
/// XEP-0300 Use of Cryptographic Hash Functions.
pub const HASHES: &str = "urn:xmpp:hashes:2";
/// XEP-0004 Data Forms.
pub const DATA_FORMS: &str = "jabber:x:data";
/// XEP-0122 Data Forms Validation.
pub const DATA_VALIDATE: &str = "http://jabber.org/protocol/xdata-validate";
/// XEP-0141 Data Forms Layout.
pub const DATA_LAYOUT: &str = "http://jabber.org/protocol/xdata-layout";
/// XEP-0232 Software Information: FORM_TYPE.
pub const SOFTWARE_INFO: &str = "urn:xmpp:dataforms:softwareinfo";
/// XEP-0059 Result Set Management.
pub const RSM: &str = "http://jabber.org/protocol/rsm";
/// XEP-0199 XMPP Ping.
pub const PING: &str = "urn:xmpp:ping";
/// XEP-0202 Entity Time.
pub const TIME: &str = "urn:xmpp:time";
/// XEP-0092 Software Version.
pub const VERSION: &str = "jabber:iq:version";
/// XEP-0012 Last Activity, and uptime of a server.
pub const LAST: &str = "jabber:iq:last";
/// XEP-0050 Ad-Hoc Commands.
pub const COMMANDS: &str = "http://jabber.org/protocol/commands";
/// XEP-0133 Service Administration: FORM_TYPE and the stem of its nodes.
pub const ADMIN: &str = "http://jabber.org/protocol/admin";
/// XEP-0077 In-Band Registration.
pub const REGISTER: &str = "jabber:iq:register";
/// XEP-0401 Ad-hoc Account Invitation Generation.
pub const INVITE: &str = "urn:xmpp:invite";
/// XEP-0401: command node: invite a contact.
pub const INVITE_CONTACT: &str = "urn:xmpp:invite#invite";
/// XEP-0401: command node: create an account for somebody.
pub const INVITE_ACCOUNT: &str = "urn:xmpp:invite#create-account";
/// XEP-0379 Pre-Authenticated Roster Subscription.
pub const PARS: &str = "urn:xmpp:pars:0";
/// XEP-0445 Pre-Authenticated In-Band Registration.
pub const IBR_TOKEN: &str = "urn:xmpp:ibr-token:0";
/// XEP-0055 Jabber Search.
pub const SEARCH: &str = "jabber:iq:search";
/// XEP-0215 External Service Discovery.
pub const EXTERNAL_SERVICES: &str = "urn:xmpp:extdisco:2";
/// XEP-0363 HTTP File Upload.
pub const HTTP_UPLOAD: &str = "urn:xmpp:http:upload:0";
/// XEP-0363: purpose of an upload.
pub const HTTP_UPLOAD_PURPOSE: &str = "urn:xmpp:http:upload:purpose:0";
/// XEP-0065 SOCKS5 Bytestreams.
pub const BYTESTREAMS: &str = "http://jabber.org/protocol/bytestreams";
/// XEP-0047 In-Band Bytestreams.
pub const IBB: &str = "http://jabber.org/protocol/ibb";
/// XEP-0433 Extended Channel Search.
pub const CHANNEL_SEARCH: &str = "urn:xmpp:channel-search:0";

// ---- Roster, presence, the account ------------------------------------------------------------------

/// RFC 6121 s.2: roster.
pub const ROSTER: &str = "jabber:iq:roster";
/// XEP-0049 Private XML Storage.
pub const PRIVATE: &str = "jabber:iq:private";
/// XEP-0054 vcard-temp.
pub const VCARD: &str = "vcard-temp";
/// XEP-0153 vCard-Based Avatars.
pub const VCARD_UPDATE: &str = "vcard-temp:x:update";
/// XEP-0292 vCard4 over XMPP.
pub const VCARD4: &str = "urn:ietf:params:xml:ns:vcard-4.0";
/// XEP-0292: the PEP node.
pub const VCARD4_NODE: &str = "urn:xmpp:vcard4";
/// XEP-0084 User Avatar: image data.
pub const AVATAR_DATA: &str = "urn:xmpp:avatar:data";
/// XEP-0084 User Avatar: metadata.
pub const AVATAR_METADATA: &str = "urn:xmpp:avatar:metadata";
/// XEP-0398 User Avatar to vCard-Based Avatars Conversion.
pub const PEP_VCARD_CONVERSION: &str = "urn:xmpp:pep-vcard-conversion:0";
/// XEP-0191 Blocking Command.
pub const BLOCKING: &str = "urn:xmpp:blocking";
/// XEP-0191: the application-specific error condition.
pub const BLOCKING_ERRORS: &str = "urn:xmpp:blocking:errors";
/// `<jid/>` in a report that is forwarded: whom it is about (the element is XEP-0268's).
pub const JID: &str = "urn:xmpp:jid:0";
/// XEP-0377 Blocking Command Reports.
pub const REPORTING: &str = "urn:xmpp:reporting:1";
/// XEP-0377: reason "spam".
pub const REPORTING_SPAM: &str = "urn:xmpp:reporting:spam";
/// XEP-0377: reason "abuse".
pub const REPORTING_ABUSE: &str = "urn:xmpp:reporting:abuse";
/// XEP-0283 Moved.
pub const MOVED: &str = "urn:xmpp:moved:1";
/// XEP-0227 Portable Import/Export Format.
pub const PIE: &str = "urn:xmpp:pie:0";
/// XEP-0172 User Nickname.
pub const NICK: &str = "http://jabber.org/protocol/nick";
/// XEP-0357 Push Notifications.
pub const PUSH: &str = "urn:xmpp:push:0";
/// XEP-0357: FORM_TYPE of the summary.
pub const PUSH_SUMMARY: &str = "urn:xmpp:push:summary";
/// "Encrypted Push Notifications", an extension of XEP-0357 that some clients use.
pub const PUSH_ENCRYPT: &str = "tigase:push:encrypt:0";
/// The same: feature: its one algorithm.
pub const PUSH_ENCRYPT_AES: &str = "tigase:push:encrypt:aes-128-gcm";

// ---- Messaging --------------------------------------------------------------------------------------

/// XEP-0160: feature of servers that keep messages for offline users.
pub const OFFLINE_FEATURE: &str = "msgoffline";
/// XEP-0203 Delayed Delivery.
pub const DELAY: &str = "urn:xmpp:delay";
/// XEP-0280 Message Carbons.
pub const CARBONS: &str = "urn:xmpp:carbons:2";
/// XEP-0280 s.6.1: feature of servers that follow the recommended rules.
pub const CARBONS_RULES: &str = "urn:xmpp:carbons:rules:0";
/// XEP-0297 Stanza Forwarding.
pub const FORWARD: &str = "urn:xmpp:forward:0";
/// XEP-0334 Message Processing Hints.
pub const HINTS: &str = "urn:xmpp:hints";
/// XEP-0359 Unique and Stable Stanza IDs.
pub const STANZA_ID: &str = "urn:xmpp:sid:0";
/// XEP-0313 Message Archive Management.
pub const MAM: &str = "urn:xmpp:mam:2";
/// XEP-0313: feature: pages by id, flipped pages, metadata.
pub const MAM_EXTENDED: &str = "urn:xmpp:mam:2#extended";
/// XEP-0313 s.7: feature: the field `include-groupchat` is understood.
pub const MAM_GROUPCHAT_FIELD: &str = "urn:xmpp:mam:2#groupchat-field";
/// XEP-0313 s.5.4: feature: group chat messages in a user archive.
pub const MAM_GROUPCHAT: &str = "urn:xmpp:mam:2#groupchat-available";
/// XEP-0431 Full Text Search in MAM.
pub const FULLTEXT: &str = "urn:xmpp:fulltext:0";
/// XEP-0085 Chat State Notifications.
pub const CHAT_STATES: &str = "http://jabber.org/protocol/chatstates";
/// XEP-0184 Message Delivery Receipts.
pub const RECEIPTS: &str = "urn:xmpp:receipts";
/// XEP-0333 Displayed Markers.
pub const MARKERS: &str = "urn:xmpp:chat-markers:0";
/// XEP-0490 Message Displayed Synchronization.
pub const DISPLAYED_SYNC: &str = "urn:xmpp:mds:displayed:0";
/// XEP-0490: feature: the server sets the marker.
pub const DISPLAYED_ASSIST: &str = "urn:xmpp:mds:server-assist:0";
/// XEP-0308 Last Message Correction.
pub const CORRECT: &str = "urn:xmpp:message-correct:0";
/// XEP-0444 Message Reactions.
pub const REACTIONS: &str = "urn:xmpp:reactions:0";
/// XEP-0424 Message Retraction.
pub const RETRACT: &str = "urn:xmpp:message-retract:1";
/// XEP-0424: feature: the archive keeps tombstones.
pub const RETRACT_TOMBSTONE: &str = "urn:xmpp:message-retract:1#tombstone";
/// XEP-0422 Message Fastening: the wrapper that older clients put retractions in.
pub const FASTEN: &str = "urn:xmpp:fasten:0";
/// XEP-0428 Fallback Indication.
pub const FALLBACK: &str = "urn:xmpp:fallback:0";
/// XEP-0461 Message Replies.
pub const REPLY: &str = "urn:xmpp:reply:0";
/// XEP-0066 Out of Band Data.
pub const OOB: &str = "jabber:x:oob";
/// XEP-0071 XHTML-IM.
pub const XHTML_IM: &str = "http://jabber.org/protocol/xhtml-im";
/// XEP-0447 Stateless File Sharing.
pub const FILE_SHARING: &str = "urn:xmpp:sfs:0";
/// XEP-0022 Message Events: obsolete, still sent by old clients.
pub const MESSAGE_EVENTS: &str = "jabber:x:event";
/// XEP-0353 Jingle Message Initiation.
pub const JINGLE_MESSAGE: &str = "urn:xmpp:jingle-message:0";
/// XEP-0166 Jingle.
pub const JINGLE: &str = "urn:xmpp:jingle:1";
/// XEP-0158 CAPTCHA Forms.
pub const CAPTCHA: &str = "urn:xmpp:captcha";
/// XEP-0224 Attention.
pub const ATTENTION: &str = "urn:xmpp:attention:0";
/// XEP-0033 Extended Stanza Addressing.
pub const ADDRESS: &str = "http://jabber.org/protocol/address";
/// XEP-0131 Stanza Headers and Internet Metadata.
pub const SHIM: &str = "http://jabber.org/protocol/shim";
/// XEP-0070 Verifying HTTP Requests.
pub const HTTP_AUTH: &str = "http://jabber.org/protocol/http-auth";

// ---- End-to-end encryption: passed untouched, known to the classifier --------------------------------

/// XEP-0380 Explicit Message Encryption.
pub const EME: &str = "urn:xmpp:eme:0";
/// XEP-0384 OMEMO Encryption.
pub const OMEMO: &str = "urn:xmpp:omemo:2";
/// XEP-0384 before 0.4: what most clients send.
pub const OMEMO_LEGACY: &str = "eu.siacs.conversations.axolotl";
/// XEP-0373 OpenPGP for XMPP.
pub const OPENPGP: &str = "urn:xmpp:openpgp:0";
/// XEP-0027 Current Jabber OpenPGP Usage.
pub const OPENPGP_LEGACY: &str = "jabber:x:encrypted";
/// XEP-0420 Stanza Content Encryption.
pub const SCE: &str = "urn:xmpp:sce:1";

// ---- Publish-subscribe ------------------------------------------------------------------------------

/// XEP-0060 Publish-Subscribe.
pub const PUBSUB: &str = "http://jabber.org/protocol/pubsub";
/// XEP-0060: use cases of an owner.
pub const PUBSUB_OWNER: &str = "http://jabber.org/protocol/pubsub#owner";
/// XEP-0060: notifications.
pub const PUBSUB_EVENT: &str = "http://jabber.org/protocol/pubsub#event";
/// XEP-0060: application-specific error conditions.
pub const PUBSUB_ERRORS: &str = "http://jabber.org/protocol/pubsub#errors";
/// XEP-0060: FORM_TYPE of a node's configuration.
pub const PUBSUB_NODE_CONFIG: &str = "http://jabber.org/protocol/pubsub#node_config";
/// XEP-0060: FORM_TYPE of publish options.
pub const PUBSUB_PUBLISH_OPTIONS: &str = "http://jabber.org/protocol/pubsub#publish-options";
/// XEP-0060: FORM_TYPE of subscribe options.
pub const PUBSUB_SUBSCRIBE_OPTIONS: &str = "http://jabber.org/protocol/pubsub#subscribe_options";
/// XEP-0060: FORM_TYPE of a node's metadata.
pub const PUBSUB_META_DATA: &str = "http://jabber.org/protocol/pubsub#meta-data";
/// XEP-0402 PEP Native Bookmarks.
pub const BOOKMARKS: &str = "urn:xmpp:bookmarks:1";
/// XEP-0402: feature: the server keeps old and new bookmarks in step.
pub const BOOKMARKS_COMPAT: &str = "urn:xmpp:bookmarks:1#compat";
/// XEP-0402: in step with XEP-0048 in PEP.
pub const BOOKMARKS_COMPAT_PEP: &str = "urn:xmpp:bookmarks:1#compat-pep";
/// XEP-0411 Bookmarks Conversion.
pub const BOOKMARKS_CONVERSION: &str = "urn:xmpp:bookmarks-conversion:0";
/// XEP-0048 Bookmarks, kept in private storage.
pub const BOOKMARKS_LEGACY: &str = "storage:bookmarks";

// ---- Rooms ------------------------------------------------------------------------------------------

/// XEP-0045 Multi-User Chat: joining, and the feature of rooms and services.
pub const MUC: &str = "http://jabber.org/protocol/muc";
/// XEP-0045: status codes, invitations, occupants' details.
pub const MUC_USER: &str = "http://jabber.org/protocol/muc#user";
/// XEP-0045: use cases of an admin.
pub const MUC_ADMIN: &str = "http://jabber.org/protocol/muc#admin";
/// XEP-0045: use cases of an owner.
pub const MUC_OWNER: &str = "http://jabber.org/protocol/muc#owner";
/// XEP-0045: FORM_TYPE of a room's configuration.
pub const MUC_ROOM_CONFIG: &str = "http://jabber.org/protocol/muc#roomconfig";
/// XEP-0045: FORM_TYPE of a room's description in disco.
pub const MUC_ROOM_INFO: &str = "http://jabber.org/protocol/muc#roominfo";
/// XEP-0045: FORM_TYPE of a registration with a room.
pub const MUC_REGISTER: &str = "http://jabber.org/protocol/muc#register";
/// XEP-0045: FORM_TYPE of a request for voice.
pub const MUC_REQUEST: &str = "http://jabber.org/protocol/muc#request";
/// XEP-0045 s.18: feature: reflected messages keep their id.
pub const MUC_STABLE_ID: &str = "http://jabber.org/protocol/muc#stable_id";
/// XEP-0249 Direct MUC Invitations.
pub const CONFERENCE: &str = "jabber:x:conference";
/// XEP-0410 MUC Self-Ping: feature.
pub const MUC_SELF_PING: &str = "http://jabber.org/protocol/muc#self-ping-optimization";
/// XEP-0421 Occupant identifiers.
pub const OCCUPANT_ID: &str = "urn:xmpp:occupant-id:0";
/// XEP-0425 Moderated Message Retraction.
pub const MODERATE: &str = "urn:xmpp:message-moderate:1";
/// XEP-0317 Hats.
pub const HATS: &str = "urn:xmpp:hats:0";
/// XEP-0463 MUC Affiliations Versioning.
pub const MUC_AFFILIATIONS: &str = "urn:xmpp:muc:affiliations:1";
/// XEP-0502 MUC Activity Indicator.
pub const MUC_ACTIVITY: &str = "urn:xmpp:muc-activity";

#[cfg(test)]
mod tests {
    #[test]
    fn no_namespace_is_listed_twice() {
        let source = include_str!("ns.rs");
        let mut seen = std::collections::HashMap::new();
        for line in source.lines().filter_map(|l| l.strip_prefix("pub const ")) {
            let (name, rest) = line.split_once(": &str = \"").expect("a string constant");
            let value = rest.trim_end_matches("\";");
            assert_eq!(seen.insert(value, name), None, "{value} is listed as {name} too");
        }
        assert!(seen.len() > 120);
    }
}

// Starts converse.js against the server that this page comes from, and against nothing else.

import converse from './converse/converse.min.js';

// converse.js leaves elements alone that are there already. Its own footer loads its sponsors' logos from elsewhere.
customElements.define(
  'converse-footer',
  class extends HTMLElement {
    connectedCallback() {
      const notice = document.createElement('a');
      notice.href = './NOTICE.txt';
      notice.textContent = 'converse.js, free software by JC Brand and others';
      this.replaceChildren(notice);
    }
  },
);

const settings = await (await fetch('./chat.json')).json();
const base = new URL('.', location.href);
const socket = new URL('xmpp-websocket', base);
socket.protocol = base.protocol === 'https:' ? 'wss:' : 'ws:';
// A network that lets no WebSocket through: /?transport=bosh
const bosh = new URLSearchParams(location.search).get('transport') === 'bosh';

await converse.initialize({
  view_mode: 'fullscreen',
  authentication: 'login',
  auto_login: false,
  auto_reconnect: true,
  keepalive: true,
  discover_connection_methods: false,
  show_connection_url_input: false,
  ...(bosh ? { bosh_service_url: new URL('http-bind', base).href } : { websocket_url: socket.href }),
  default_domain: settings.domain,
  domain_placeholder: settings.domain,
  allow_registration: false,
  assets_path: new URL('converse', base).pathname,
  i18n: navigator.language,
  // Whatever people send each other, nothing of it is fetched from elsewhere before somebody clicks on it.
  render_media: false,
  fetch_url_headers: false,
  geouri_regex: /^$/,
  archived_messages_page_size: 50,
  message_archiving: 'roster',
  allow_user_trust_override: false,
  clear_cache_on_logout: true,
  play_sounds: true,
  loglevel: 'error',
});

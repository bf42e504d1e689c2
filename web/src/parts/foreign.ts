// Characters that turn the direction of what follows them, or can't be seen, are shown as what they are. Everything that
// is put on a page goes through here, so that no page has to think of it: who reads a report at night must not see
// `gnp.exe` where `exe.png` stands.

import { type ComponentChildren, type VNode, options } from 'preact';

/** Bidirectional embeddings, overrides and isolates; what separates lines; control characters but tab and line feed. */
const HIDDEN = /[\u0000-\u0008\u000B-\u001F\u007F-\u009F\u2028-\u202E\u2066-\u2069]/g;

export function visible(text: string): string {
  return text.replace(HIDDEN, (it) => `[U+${it.charCodeAt(0).toString(16).toUpperCase().padStart(4, '0')}]`);
}

function seen(children: ComponentChildren): ComponentChildren {
  if (typeof children === 'string') return visible(children);
  return Array.isArray(children) ? children.map(seen) : children;
}

const before = options.vnode?.bind(options);
options.vnode = (vnode: VNode) => {
  const props = vnode.props as Record<string, unknown> & { children?: ComponentChildren };
  if (props.children !== undefined) props.children = seen(props.children);
  if (typeof vnode.type === 'string') {
    for (const name of ['title', 'aria-label']) if (typeof props[name] === 'string') props[name] = visible(props[name]);
  }
  before?.(vnode);
};

// Addresses inside the console: `#/domains/example.org?sort=in`. They are behind `#`, so the server needs to know nothing.

export interface Place {
  /** The page: `now`, `domains`, ... */
  page: string;
  /** What follows, such as a domain. */
  item: string | null;
  query: URLSearchParams;
}

export function parse(hash: string): Place {
  const text = hash.replace(/^#?\/?/, '');
  const [path = '', query = ''] = text.split('?', 2);
  const [page = '', ...rest] = path.split('/');
  return { page: page || 'now', item: rest.length ? decode(rest.join('/')) : null, query: new URLSearchParams(query) };
}

export function href(page: string, item?: string | null, query: Record<string, string> = {}): string {
  const text = new URLSearchParams(Object.entries(query).filter(([, value]) => value !== '')).toString();
  return `#/${page}${item ? `/${encodeURIComponent(item)}` : ''}${text ? `?${text}` : ''}`;
}

function decode(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

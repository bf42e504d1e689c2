// A table that becomes a list of cards on a narrow screen. The roles are written out because browsers forget them
// when a table is laid out as anything else.

import type { ComponentChildren } from 'preact';

export interface Column<T> {
  name: string;
  cell: (row: T) => ComponentChildren;
  /** The key to sort by. */
  sort?: string;
  number?: boolean;
  /** The cell that names its row. */
  head?: boolean;
  /** Has no name to be shown: buttons. */
  bare?: boolean;
  /** Left out on a narrow screen. */
  minor?: boolean;
}

export interface TableProps<T> {
  caption: string;
  columns: Column<T>[];
  rows: T[];
  id: (row: T) => string | number;
  none: string;
  sorted?: string | undefined;
  onSort?: (key: string) => void;
  mark?: (row: T) => string;
}

export function Table<T>(props: TableProps<T>) {
  if (!props.rows.length) return <p class="quiet empty">{props.none}</p>;
  return (
    <div class="table-frame">
      <table role="table">
        <caption class="visually-hidden">{props.caption}</caption>
        <thead role="rowgroup">
          <tr role="row">
            {props.columns.map((column) => <Head key={column.name} column={column} sorted={props.sorted} onSort={props.onSort} />)}
          </tr>
        </thead>
        <tbody role="rowgroup">
          {props.rows.map((row) => (
            <tr role="row" key={props.id(row)} class={props.mark?.(row) ?? ''}>
              {props.columns.map((column) => {
                const kind = `${column.number ? 'number' : ''} ${column.bare ? 'bare' : ''} ${column.minor ? 'minor' : ''}`;
                return column.head
                  ? <th role="rowheader" scope="row" key={column.name}>{column.cell(row)}</th>
                  : <td role="cell" key={column.name} class={kind} data-label={column.bare ? undefined : column.name}>{column.cell(row)}</td>;
              })}
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}

function Head<T>(props: { column: Column<T>; sorted: string | undefined; onSort: ((key: string) => void) | undefined }) {
  const { column, sorted, onSort } = props;
  const kind = column.number ? 'number' : '';
  if (column.bare) return <th role="columnheader" scope="col"><span class="visually-hidden">{column.name}</span></th>;
  const { sort } = column;
  if (!sort || !onSort) return <th role="columnheader" scope="col" class={kind}>{column.name}</th>;
  const here = sorted === sort;
  return (
    <th role="columnheader" scope="col" class={kind} aria-sort={here ? (sort === 'domain' ? 'ascending' : 'descending') : undefined}>
      <button type="button" class="sort" onClick={() => onSort(sort)}>{column.name}<span aria-hidden="true" class="arrow">{here ? (sort === 'domain' ? '▲' : '▼') : ''}</span></button>
    </th>
  );
}

/** Earlier and later pages. */
export function Pages(props: { first: boolean; more: boolean; onFirst: () => void; onMore: () => void; moreName?: string; place?: string | undefined }) {
  if (props.first && !props.more) return props.place ? <p class="pages quiet">{props.place}</p> : null;
  return (
    <nav class="pages" aria-label="Pages">
      <button type="button" disabled={props.first} onClick={props.onFirst}>Back to the start</button>
      {props.place && <span class="quiet">{props.place}</span>}
      <button type="button" disabled={!props.more} onClick={props.onMore}>{props.moreName ?? 'Next'}</button>
    </nav>
  );
}

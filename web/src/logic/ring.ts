// The last minutes of some numbers, for a live chart.

/** Columns: seconds since 1970, then one for each series; what uPlot takes. */
export class Ring {
  private readonly rows: number[][] = [];

  constructor(private readonly series: number, private readonly seconds: number) {}

  push(at: number, values: number[]): void {
    const last = this.rows.at(-1)?.[0];
    // A page that slept, or a clock that was set back.
    if (last !== undefined && at <= last) return;
    this.rows.push([at, ...Array.from({ length: this.series }, (_, n) => values[n] ?? 0)]);
    while ((this.rows[0]?.[0] ?? at) < at - this.seconds) this.rows.shift();
  }

  /** Puts older rows before what is there, as far as they are within the time. Returns the columns. */
  before(rows: [number, number[]][]): number[][] {
    const first = this.rows[0]?.[0] ?? Infinity;
    const last = this.rows.at(-1)?.[0] ?? rows.at(-1)?.[0] ?? 0;
    const older = rows.filter(([at]) => at < first && at >= last - this.seconds);
    this.rows.unshift(...older.map(([at, values]) => [at, ...values]));
    return this.columns();
  }

  columns(): number[][] {
    return Array.from({ length: this.series + 1 }, (_, n) => this.rows.map((row) => row[n] ?? 0));
  }
}

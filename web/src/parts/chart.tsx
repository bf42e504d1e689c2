// Lines over time, drawn by uPlot. What it shows is also said in words.

import { useEffect, useRef } from 'preact/hooks';
import uPlot from 'uplot';
import 'uplot/dist/uPlot.min.css';

import { colour, colours } from './theme';

export interface Line {
  name: string;
  /** The name of a colour in the style sheet. */
  colour: string;
  /** Now, or in all. */
  value?: string;
  filled?: boolean;
}

export interface ChartProps {
  lines: Line[];
  /** Seconds since 1970, then a column for each line. */
  columns: number[][];
  height: number;
  /** What the chart shows, in words. */
  label: string;
  /** Seconds from the left to the right edge; else as far as there is data. */
  span?: number;
}

export function Chart(props: ChartProps) {
  const place = useRef<HTMLDivElement>(null);
  const plot = useRef<uPlot | null>(null);
  const shades = colours.value;
  useEffect(() => {
    const home = place.current;
    if (!home) return undefined;
    const made = new uPlot(options(props, home.clientWidth), props.columns as uPlot.AlignedData, home);
    plot.current = made;
    const observer = new ResizeObserver(() => made.setSize({ width: home.clientWidth, height: props.height }));
    observer.observe(home);
    return () => {
      observer.disconnect();
      made.destroy();
      plot.current = null;
    };
  }, [shades, props.height, props.span, props.lines.map((it) => it.name).join()]);
  useEffect(() => plot.current?.setData(props.columns as uPlot.AlignedData), [props.columns]);
  return (
    <figure class="chart">
      <figcaption class="legend">
        {props.lines.map((line) => (
          <span key={line.name} class={`key ${line.colour}`}>
            <span class="swatch" aria-hidden="true" />{line.name}{line.value !== undefined && <b class="number">{line.value}</b>}
          </span>
        ))}
      </figcaption>
      <div class="plot" ref={place} role="img" aria-label={props.label} />
    </figure>
  );
}

function options(props: ChartProps, width: number): uPlot.Options {
  const [ink, grid] = [colour('ink-2'), colour('line')];
  const axis: uPlot.Axis = { stroke: ink, grid: { stroke: grid, width: 1 }, ticks: { stroke: grid, width: 1, size: 4 }, font: '11px system-ui, sans-serif' };
  return {
    width,
    height: props.height,
    padding: [8, 24, 0, 0],
    legend: { show: false },
    cursor: { drag: { x: false, y: false }, points: { size: 6 }, y: false },
    scales: {
      // A live chart begins with a minute and grows to its span.
      x: { time: true, range: (_, from, to) => (props.span ? [to - Math.max(60, Math.min(props.span, to - from)), to] : [from, to]) },
      y: { range: (_, __, most) => [0, Math.max(most * 1.15, 1)] },
    },
    axes: [
      { ...axis, space: 64, size: props.span ? 28 : 42, values: [[86_400, '{D} {MMM}', null, null, null, null, null, null, 1], [3600, '{HH}:{mm}', '\n{D} {MMM}', null, null, null, null, null, 1], [60, '{HH}:{mm}', null, null, null, null, null, null, 1], [1, '{HH}:{mm}:{ss}', null, null, null, null, null, null, 1]] },
      { ...axis, size: 46, values: (_, ticks) => ticks.map((it) => (it >= 1000 ? `${+(it / 1000).toFixed(1)}k` : String(+it.toFixed(1)))) },
    ],
    series: [
      {},
      ...props.lines.map((line): uPlot.Series => {
        const stroke = colour(line.colour);
        return { label: line.name, stroke, width: 1.5, points: { show: false }, ...(line.filled ? { fill: stroke.replace(/^rgb\((.*)\)$/, 'rgba($1, 0.12)') } : {}) };
      }),
    ],
  };
}

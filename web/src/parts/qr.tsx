// A QR code as one path of an SVG.

import { generate } from 'lean-qr';

export function path(size: number, dark: (x: number, y: number) => boolean): string {
  const parts: string[] = [];
  for (let y = 0; y < size; y += 1) {
    for (let x = 0; x < size; x += 1) {
      if (dark(x, y)) parts.push(`M${x} ${y}h1v1h-1z`);
    }
  }
  return parts.join('');
}

export function Qr(props: { text: string; label: string }) {
  const code = generate(props.text);
  const edge = 4;
  return (
    <svg class="qr" role="img" aria-label={props.label} viewBox={`${-edge} ${-edge} ${code.size + 2 * edge} ${code.size + 2 * edge}`} shape-rendering="crispEdges">
      <rect x={-edge} y={-edge} width={code.size + 2 * edge} height={code.size + 2 * edge} fill="#fff" />
      <path d={path(code.size, (x, y) => code.get(x, y))} fill="#000" />
    </svg>
  );
}

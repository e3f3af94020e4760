import { Box, Flex, Text } from "@chakra-ui/react";
import { useMemo, useState } from "react";

import { clock } from "../format";

type Point = { readonly at: number; readonly value: number };

type Props = {
  readonly color: string;
  readonly format: (value: number) => string;
  readonly from: number;
  /** Top of the chart; without, the greatest value. */
  readonly max?: number | null;
  readonly name: string;
  /** Times in milliseconds, oldest first. */
  readonly points: readonly Point[];
  readonly to: number;
};

const WIDTH = 600;
const HEIGHT = 120;
const MOST_POINTS = 300;

/** Longer than this without a figure is a gap in the line, not a slope. */
const gapAfter = (from: number, to: number) => Math.max(180_000, ((to - from) / MOST_POINTS) * 2.5);

/** No more points than the screen can show: of each stretch the greatest, for peaks are what one looks for. */
const thinned = (points: readonly Point[], from: number, to: number): Point[] => {
  if (points.length <= MOST_POINTS) return [...points];
  const stretch = (to - from) / MOST_POINTS;
  const peaks = new Map<number, Point>();
  for (const point of points) {
    const bucket = Math.floor((point.at - from) / stretch);
    const known = peaks.get(bucket);
    if (known === undefined || point.value > known.value) peaks.set(bucket, point);
  }
  return [...peaks.values()];
};

const lines = (points: readonly Point[], gap: number): Point[][] => {
  const found: Point[][] = [];
  for (const point of points) {
    const last = found.at(-1);
    const before = last?.at(-1);
    if (last === undefined || before === undefined || point.at - before.at > gap) found.push([point]);
    else last.push(point);
  }
  return found;
};

/** A figure over time. Its words say what the line shows. */
export const Chart = ({ color, format, from, max = null, name, points, to }: Props) => {
  const [pointed, setPointed] = useState<Point | null>(null);
  const shown = useMemo(() => thinned(points, from, to), [points, from, to]);
  const values = shown.map((point) => point.value);
  const top = Math.max(max ?? 0, ...values, max === null ? 1e-9 : 0);
  const x = (at: number) => ((at - from) / (to - from)) * WIDTH;
  const y = (value: number) => HEIGHT - (value / top) * (HEIGHT - 4) - 2;
  const last = points.at(-1);
  const gap = gapAfter(from, to);
  // Of one that is not connected there is a last figure, but none of now.
  const now = last !== undefined && to - last.at <= gap ? "now" : "last";
  const summary =
    last === undefined
      ? `${name}: no figures yet`
      : `${name}: ${now} ${format(last.value)}, between ${format(Math.min(...values))} and ${format(Math.max(...values))}`;
  const withDay = to - from > 20 * 3_600_000;
  const find = (clientX: number, box: DOMRect) => {
    const at = from + ((clientX - box.left) / box.width) * (to - from);
    const nearest = shown.reduce<Point | null>(
      (best, point) => (best === null || Math.abs(point.at - at) < Math.abs(best.at - at) ? point : best),
      null,
    );
    setPointed(nearest);
  };
  return (
    <Box minWidth={0}>
      <Flex align="baseline" justify="space-between" mb={1}>
        <Text fontSize="sm" fontWeight="bold">
          {name}
        </Text>
        <Text color="fg.muted" fontSize="sm" fontVariantNumeric="tabular-nums">
          {pointed === null
            ? last === undefined
              ? "no figures yet"
              : `${now === "now" ? "" : `${clock(last.at, withDay)}: `}${format(last.value)}`
            : `${clock(pointed.at, withDay)}: ${format(pointed.value)}`}
        </Text>
      </Flex>
      <Box borderBottomWidth={1} borderStartWidth={1} color={color} height="7.5rem">
        <svg
          aria-label={summary}
          height="100%"
          onPointerLeave={() => setPointed(null)}
          onPointerMove={(event) => find(event.clientX, event.currentTarget.getBoundingClientRect())}
          preserveAspectRatio="none"
          role="img"
          viewBox={`0 0 ${WIDTH} ${HEIGHT}`}
          width="100%"
        >
          {lines(shown, gap).map((line) => {
            const drawn = line.map((point) => `${x(point.at).toFixed(1)},${y(point.value).toFixed(1)}`);
            const [first] = line;
            const end = line.at(-1);
            if (first === undefined || end === undefined) return null;
            return (
              <g key={first.at}>
                <polygon
                  fill="currentColor"
                  opacity={0.15}
                  points={`${x(first.at)},${HEIGHT} ${drawn.join(" ")} ${x(end.at)},${HEIGHT}`}
                />
                <polyline
                  fill="none"
                  points={drawn.length === 1 ? `${drawn[0]} ${x(end.at) + 2},${y(end.value)}` : drawn.join(" ")}
                  stroke="currentColor"
                  strokeLinejoin="round"
                  strokeWidth={1.5}
                  vectorEffect="non-scaling-stroke"
                />
              </g>
            );
          })}
          {pointed === null ? undefined : (
            <line
              stroke="currentColor"
              strokeDasharray="3"
              vectorEffect="non-scaling-stroke"
              x1={x(pointed.at)}
              x2={x(pointed.at)}
              y1={0}
              y2={HEIGHT}
            />
          )}
        </svg>
      </Box>
      <Flex color="fg.muted" fontSize="xs" justify="space-between">
        <span>{clock(from, withDay)}</span>
        {last === undefined ? undefined : <span>at most {format(top)}</span>}
        <span>{clock(to, withDay)}</span>
      </Flex>
    </Box>
  );
};

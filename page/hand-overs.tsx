/**
 * KV caches on their way: prefill workers on the left, decode workers on the right, and an edge for each pair that this
 * gateway has used. A dot moves along it for every cache that is on its way or has landed since the event before.
 */
import type { HandOverBody, WorkerBody } from '../services/gateway/http/admin-answers.ts';
import { bytes, count } from './format.ts';
import type { Live } from './live.ts';

const WIDTH = 900;
const BOX = { width: 210, height: 44 };
const STEP = 64;
const TOP = 28;
/** Dots of one edge: more could not be told apart. */
const MOST_DOTS = 6;

interface Placed {
  readonly worker: Pick<WorkerBody, 'address' | 'usable' | 'slots' | 'free_slots' | 'queued' | 'role'>;
  readonly x: number;
  readonly y: number;
}

export function HandOverMap({ live }: { readonly live: Live }) {
  const { workers, hand_overs: edges } = live.state!;
  const prefill = column(workers, 'prefill', 10);
  const decode = column(workers, 'decode', WIDTH - BOX.width - 10);
  const height = TOP + STEP * Math.max(prefill.size, decode.size, 1);
  const known = edges.filter(({ from, to }) => prefill.has(from) && decode.has(to));
  return (
    <figure>
      <figcaption>KV caches between workers, as this gateway has them handed over</figcaption>
      <div class="map">
        <svg viewBox={`0 0 ${WIDTH} ${height}`} role="img" aria-label={inWords(known)}>
          <text x={10} y={18} class="column">
            prefill
          </text>
          <text x={WIDTH - BOX.width - 10} y={18} class="column">
            decode
          </text>
          {known.map((edge) => (
            <Edge
              key={`${edge.from} ${edge.to}`}
              edge={edge}
              from={prefill.get(edge.from)!}
              to={decode.get(edge.to)!}
              landed={live.landed.get(`${edge.from} ${edge.to}`) ?? 0}
              tick={live.tick}
            />
          ))}
          {[...prefill.values(), ...decode.values()].map((box) => (
            <Box key={`${box.worker.role} ${box.worker.address}`} {...box} />
          ))}
        </svg>
      </div>
    </figure>
  );
}

function column(workers: readonly WorkerBody[], role: WorkerBody['role'], x: number): ReadonlyMap<string, Placed> {
  const own = workers.filter((worker) => worker.role === role);
  return new Map(own.map((worker, i) => [worker.address, { worker, x, y: TOP + STEP * i }]));
}

/** The picture for those who do not see it. */
function inWords(edges: readonly HandOverBody[]): string {
  if (edges.length === 0) return 'No KV cache has been handed over yet.';
  return edges.map(({ from, to, flying, done }) => `${from} to ${to}: ${flying} in flight, ${done} done`).join('; ');
}

function Box({ worker, x, y }: Placed) {
  const { address, usable, slots, free_slots, queued, role } = worker;
  const busy = slots - free_slots;
  const share = slots === 0 ? 0 : busy / slots;
  return (
    <g class={usable ? 'box' : 'box gone'}>
      <rect x={x} y={y} width={BOX.width} height={BOX.height} rx={6} />
      <rect class="fill" x={x} y={y + BOX.height - 5} width={BOX.width * share} height={5} rx={2} />
      <text x={x + 10} y={y + 17}>
        {address}
      </text>
      <text x={x + 10} y={y + 33} class="small">
        {usable ? `${busy}/${slots} slots, queue ${count(queued)} ${role === 'prefill' ? 'tokens' : ''}` : 'not usable'}
      </text>
    </g>
  );
}

interface EdgeProps {
  readonly edge: HandOverBody;
  readonly from: Placed;
  readonly to: Placed;
  readonly landed: number;
  readonly tick: number;
}

function Edge({ edge, from, to, landed, tick }: EdgeProps) {
  const [x1, y1] = [from.x + BOX.width, from.y + BOX.height / 2];
  const [x2, y2] = [to.x, to.y + BOX.height / 2];
  const bend = (x2 - x1) / 3;
  const path = `M${x1} ${y1}C${x1 + bend} ${y1} ${x2 - bend} ${y2} ${x2} ${y2}`;
  const dots = Math.min(MOST_DOTS, edge.flying + landed);
  // Near the decode worker, where edges of one prefill worker have parted.
  const [labelX, labelY] = [x1 + 0.72 * (x2 - x1), y1 + 0.86 * (y2 - y1) - 6];
  return (
    <g class={edge.flying + landed > 0 ? 'edge busy' : 'edge'}>
      <path d={path} />
      {Array.from({ length: dots }, (_, i) => (
        <circle
          key={`${tick} ${i}`}
          r={5}
          style={{ offsetPath: `path("${path}")`, animationDelay: `${(i * 0.9) / MOST_DOTS}s` }}
        />
      ))}
      <text x={labelX} y={labelY} class="small" text-anchor="middle">
        {edge.flying} in flight, {count(edge.done)} done{edge.bytes > 0 && `, ${bytes(edge.bytes)}`}
      </text>
    </g>
  );
}

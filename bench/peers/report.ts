/** The report of bench/peers: our engine beside llama.cpp of the same shape. */
import { median, quantile } from '../measure/statistics.ts';
import { figure, mebibytes, table } from '../report/markdown.ts';
import type { Bench, Report } from '../report/report.ts';

type Cell =
  | { readonly do: 'prefill'; readonly tokens: number; readonly chunk: number }
  | { readonly do: 'decode'; readonly batch: number; readonly context: number };

interface ComparedEngine {
  readonly name: string;
  /** Whether it computes prompts with 8-bit activations. */
  readonly w8a8: boolean;
  readonly loadMs: number;
  /** In bytes; undefined where the kernel does not tell. */
  readonly memory: { readonly rss?: number; readonly anonymous?: number };
  /** For each cell, one duration per round. */
  readonly ms: readonly (readonly number[])[];
}

interface PeersResult {
  readonly cells: readonly Cell[];
  /** The engines; the first one is the peer. */
  readonly engines: readonly ComparedEngine[];
}

export const PEERS: Bench<PeersResult> = {
  name: 'peers',
  title: 'The engine beside llama.cpp',
  definitions: {
    speed: "the peer's ms / the engine's ms of the same round; median and quartiles over the rounds",
    'tokens/s': '1000 × tokens of the cell (prompt tokens, or sequences of the step) / median ms',
    load: 'ms until the model is ready',
    resident: 'MiB in memory, with shared pages counted in full',
    anonymous: 'MiB in memory that no file backs: a second process of the same model needs them again',
  },
  report: ({ result }) => reportPeers(result),
  headline({ cells, engines }) {
    const [peer, ...ours] = engines;
    const engine = ours.at(-1);
    if (peer === undefined || engine === undefined) return 'nothing was compared';
    const longest = cells.findLastIndex((cell) => cell.do === 'prefill');
    const single = cells.findIndex((cell) => cell.do === 'decode');
    const speeds = [longest, single].filter((i) => i >= 0);
    const written = speeds.map((i) => `${nameOf(cells[i]!)}: ${figure(median(ratiosOf(engine, peer, i)))} ×`);
    return `speed of ${engine.name} relative to ${peer.name}: ${written.join(', ')}`;
  },
};

function reportPeers({ cells, engines }: PeersResult): Report {
  const [peer, ...ours] = engines;
  if (peer === undefined) return { markdown: 'Nothing was compared.', charts: [] };
  const rows = cells.flatMap((cell, i) =>
    engines.map((engine) => {
      const ms = engine.ms[i]!;
      const middle = median(ms);
      const perSecond = (1000 * (cell.do === 'prefill' ? cell.tokens : cell.batch)) / middle;
      const quartiles = `${figure(quantile(ms, 0.25))}–${figure(quantile(ms, 0.75))}`;
      return [nameOf(cell), engine.name, figure(middle), quartiles, figure(perSecond), ratio(engine, peer, i)];
    }),
  );
  const held = engines.map(({ name, loadMs, memory }) => [
    name,
    figure(loadMs),
    mebibytes(memory.rss),
    mebibytes(memory.anonymous),
  ]);
  const sections = [
    'Every round measures each cell once on every engine, one right after the other, in alternating order. A ratio is the ' +
      'median of the ratios of the rounds, with their quartiles.',
    table(['cell', 'engine', 'ms, median', 'quartiles', 'tokens/s', 'speed against the peer'], rows, ['left', 'left']),
    table(['engine', 'load, ms', 'resident, MiB', 'anonymous, MiB'], held),
    table(
      ['wanted', 'engine', 'reached', ''],
      ours.flatMap((engine) => targetsOf(engine, peer, cells)),
      ['left', 'left', 'right', 'left'],
    ),
  ];
  return { markdown: sections.join('\n\n'), charts: [] };
}

const nameOf = (cell: Cell) =>
  cell.do === 'prefill' ? `prefill of ${cell.tokens}` : `decode of ${cell.batch} at ${cell.context}`;

const ratiosOf = (engine: ComparedEngine, peer: ComparedEngine, i: number) =>
  engine.ms[i]!.map((ms, round) => peer.ms[i]![round]! / ms);

function ratio(engine: ComparedEngine, peer: ComparedEngine, i: number): string {
  if (engine === peer) return '';
  const ratios = ratiosOf(engine, peer, i);
  return `${figure(median(ratios))} × (${figure(quantile(ratios, 0.25))}–${figure(quantile(ratios, 0.75))})`;
}

/** Rows for the figures that the project wants to reach, as far as their cells were measured. */
function targetsOf(engine: ComparedEngine, peer: ComparedEngine, cells: readonly Cell[]): string[][] {
  const at = (wanted: (cell: Cell) => boolean) => cells.findIndex(wanted);
  const long = at((cell) => cell.do === 'prefill' && cell.tokens === 2000);
  const one = at((cell) => cell.do === 'decode' && cell.batch === 1);
  const four = at((cell) => cell.do === 'decode' && cell.batch === 4);
  const rows: string[][] = [];
  const row = (wanted: string, reached: number, met: boolean) =>
    rows.push([wanted, engine.name, figure(reached), met ? 'met' : '**missed**']);
  if (long >= 0) {
    const factor = engine.w8a8 ? 1.8 : 1.3;
    const speedup = median(ratiosOf(engine, peer, long));
    row(`prefill of 2000 at ≥ ${factor} × the peer's tokens/s`, speedup, speedup >= factor);
  }
  if (one >= 0) {
    const share = 1 / median(ratiosOf(engine, peer, one));
    row("decode of one at ≤ 0.85 × the peer's ms/token", share, share <= 0.85);
  }
  if (one >= 0 && four >= 0) {
    const gain = median(engine.ms[one]!.map((ms, round) => (4 * ms) / engine.ms[four]![round]!));
    row('four sequences at ≥ 2.2 × the tokens/s of one', gain, gain >= 2.2);
  }
  return rows;
}

/** `bench/peers`: our engine and llama.cpp of one shape, as Markdown. */
import { median, quantile } from '../measure/statistics.ts';
import type { Artifact } from '../report/artifact.ts';
import { figure, table } from '../report/markdown.ts';
import type { Report } from '../report/report.ts';

type Cell =
  | { readonly do: 'prefill'; readonly tokens: number; readonly chunk: number }
  | { readonly do: 'decode'; readonly batch: number; readonly context: number };

interface Engine {
  readonly name: string;
  /** Whether its prompts are computed with 8-bit activations. */
  readonly w8a8: boolean;
  readonly loadMs: number;
  /** Bytes; undefined where the kernel does not tell. */
  readonly memory: { readonly rss?: number; readonly anonymous?: number };
  /** By cell, one figure a round. */
  readonly ms: readonly (readonly number[])[];
}

export interface PeersResult {
  readonly cells: readonly Cell[];
  /** The peer first. */
  readonly engines: readonly Engine[];
}

export function reportPeers({ result: { cells, engines } }: Artifact<PeersResult>): Report {
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
  const mebibytes = (bytes: number | undefined) => figure(bytes === undefined ? undefined : bytes / 2 ** 20);
  const held = engines.map(({ name, loadMs, memory }) => [
    ...[name, figure(loadMs), mebibytes(memory.rss), mebibytes(memory.anonymous)],
  ]);
  const sections = [
    'Every round measures each cell once on every engine, one right after the other, in alternating order. Ratios are the ' +
      "medians of the rounds' own, with their quartiles.",
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

const ratiosOf = (engine: Engine, peer: Engine, i: number) =>
  engine.ms[i]!.map((ms, round) => peer.ms[i]![round]! / ms);

function ratio(engine: Engine, peer: Engine, i: number): string {
  if (engine === peer) return '';
  const ratios = ratiosOf(engine, peer, i);
  return `${figure(median(ratios))} × (${figure(quantile(ratios, 0.25))}–${figure(quantile(ratios, 0.75))})`;
}

/** The figures that the project wants to reach, of the cells that were measured. */
function targetsOf(engine: Engine, peer: Engine, cells: readonly Cell[]): string[][] {
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

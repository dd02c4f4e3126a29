/**
 * Our engine and llama.cpp on one shape, in turns: every round measures each cell once on every engine, one right after
 * the other and in alternating order, so that whatever else the machine does falls on all alike. Only ratios of one run
 * mean anything.
 */
import { access, mkdir, readFile, rename, writeFile } from 'node:fs/promises';
import { availableParallelism } from 'node:os';
import { basename, join, resolve } from 'node:path';
import { parseArgs } from 'node:util';
import { Contestant } from './contestant.mjs';
import { writeGguf } from './gguf.mjs';

const STEPS = 16;
const PEER = 'llama.cpp Q4_0';

const { values: flags } = parseArgs({
  options: {
    model: { type: 'string', multiple: true },
    prompt: { type: 'string', default: '500,2000' },
    batch: { type: 'string', default: '1,4' },
    context: { type: 'string', default: '500' },
    chunk: { type: 'string', default: '512' },
    rounds: { type: 'string', default: '7' },
    threads: { type: 'string', default: String(availableParallelism()) },
    spin: { type: 'boolean', default: false },
    prepacked: { type: 'string', default: '' },
    'flash-attention': { type: 'string', default: 'auto' },
    data: { type: 'string', default: join(import.meta.dirname, '.cache') },
    engine: { type: 'string', default: join(import.meta.dirname, '../../dist/bench/engine/child.js') },
    json: { type: 'string' },
  },
});
if (flags.model === undefined) throw new Error('--model DIR is needed: a bundle of ours; give it twice to compare two');
const numbers = (text) => text.split(',').map(Number);
const quantile = (samples, q) => {
  const sorted = samples.toSorted((a, b) => a - b);
  const at = (sorted.length - 1) * q;
  const low = sorted[Math.floor(at)];
  return low + ((sorted[Math.ceil(at)] ?? low) - low) * (at % 1);
};
const median = (samples) => quantile(samples, 0.5);

const manifests = await Promise.all(
  flags.model.map(async (dir) => JSON.parse(await readFile(join(dir, 'manifest.json'), 'utf8'))),
);
const spec = manifests[0].llm.spec;
const gguf = await ggufOf(manifests[0].name, spec);

const cells = [
  ...numbers(flags.prompt).map((tokens) => ({ do: 'prefill', tokens, chunk: Number(flags.chunk) })),
  ...numbers(flags.batch).map((batch) => ({ do: 'decode', batch, context: Number(flags.context), steps: STEPS })),
];
const capacity = Math.max(...numbers(flags.prompt), Number(flags.context)) + 64;
const common = { threads: Number(flags.threads), slots: Math.max(...numbers(flags.batch)), capacity };

const contestants = [
  { name: PEER, child: join(import.meta.dirname, 'llama-cpp-child.mjs'), options: peerOptions() },
  ...manifests.map((manifest, i) => ({
    name: `ours, ${manifest.precision}${manifest.prefill ? ' + W8A8 prompts' : ''} (${basename(flags.model[i])})`,
    w8a8: manifest.prefill !== undefined,
    child: resolve(flags.engine),
    options: { model: resolve(flags.model[i]), spin: flags.spin, prepacked: flags.prepacked, ...common },
  })),
].map((entry) => ({ ...entry, process: new Contestant(entry.name, entry.child), ms: cells.map(() => []) }));

try {
  for (const c of contestants) c.loadMs = await c.process.ask({ do: 'load', options: c.options });
  for (let round = -1; round < Number(flags.rounds); round++) {
    for (const [i, cell] of cells.entries()) {
      const turn = (round + i) % 2 === 0 ? contestants : contestants.toReversed();
      for (const c of turn) {
        const value = await c.process.ask(cell);
        if (round >= 0) c.ms[i].push(cell.do === 'decode' ? median(value) : value);
      }
    }
    process.stderr.write(round < 0 ? 'warm\n' : `round ${round + 1} of ${flags.rounds}\n`);
  }
  for (const c of contestants) c.memory = await c.process.ask({ do: 'memory' });
} finally {
  for (const c of contestants) c.process.stop();
}
report();

function peerOptions() {
  const flashAttention = { auto: 'auto', on: true, off: false }[flags['flash-attention']];
  return { model: gguf, flashAttention, ...common };
}

async function ggufOf(name, shape) {
  const path = join(flags.data, `${name}-q4_0.gguf`);
  const there = await access(path).then(
    () => true,
    () => false,
  );
  if (there) return path;
  await mkdir(flags.data, { recursive: true });
  process.stderr.write(`writing ${basename(path)}\n`);
  await writeGguf(`${path}.part`, shape, name);
  await rename(`${path}.part`, path);
  return path;
}

function report() {
  const [peer, ...ours] = contestants;
  const nameOf = (cell) =>
    cell.do === 'prefill' ? `prefill of ${cell.tokens}` : `decode of ${cell.batch} at ${cell.context}`;
  const speed = (cell, ms) => (1000 * (cell.do === 'prefill' ? cell.tokens : cell.batch)) / ms;
  const lines = ['| engine | cell | ms, median | quartiles | tokens/s | speed against llama.cpp |', '| :-- | :-- | --: | --: | --: | --: |'];
  for (const c of contestants) {
    for (const [i, cell] of cells.entries()) {
      const ratios = c.ms[i].map((ms, r) => peer.ms[i][r] / ms);
      const figures = [median(c.ms[i]), quantile(c.ms[i], 0.25), quantile(c.ms[i], 0.75)].map((ms) => ms.toFixed(1));
      const ratio = c === peer ? '' : `${median(ratios).toFixed(2)} x (${quantile(ratios, 0.25).toFixed(2)}–${quantile(ratios, 0.75).toFixed(2)})`;
      lines.push(`| ${c.name} | ${nameOf(cell)} | ${figures[0]} | ${figures[1]}–${figures[2]} | ${speed(cell, median(c.ms[i])).toFixed(0)} | ${ratio} |`);
    }
  }
  lines.push('', '| engine | load, ms | resident, MiB | anonymous, MiB |', '| :-- | --: | --: | --: |');
  const mib = (bytes) => (bytes === undefined ? '—' : (bytes / 2 ** 20).toFixed(0));
  for (const c of contestants) {
    lines.push(`| ${c.name} | ${c.loadMs.toFixed(0)} | ${mib(c.memory.rss)} | ${mib(c.memory.anonymous)} |`);
  }
  const targets = ours.flatMap((c) => targetsOf(c, peer));
  lines.push('', '| target | engine | reached | |', '| :-- | :-- | --: | :-- |', ...targets);
  process.stdout.write(`${lines.join('\n')}\n`);
  if (flags.json !== undefined) {
    const engines = contestants.map(({ name, loadMs, memory, ms }) => ({ name, loadMs, memory, ms }));
    void writeFile(flags.json, `${JSON.stringify({ flags, cells, engines }, null, 2)}\n`);
  }
}

/** The figures that the design sets; those whose cells were measured. */
function targetsOf(c, peer) {
  const at = (wanted) => cells.findIndex((cell) => Object.entries(wanted).every(([key, value]) => cell[key] === value));
  const speedup = (i) => median(c.ms[i].map((ms, r) => peer.ms[i][r] / ms));
  const rows = [];
  const row = (target, reached, met) => rows.push(`| ${target} | ${c.name} | ${reached.toFixed(2)} | ${met ? 'met' : 'missed'} |`);
  const long = at({ do: 'prefill', tokens: 2000 });
  const one = at({ do: 'decode', batch: 1 });
  const four = at({ do: 'decode', batch: 4 });
  const factor = c.w8a8 ? 1.8 : 1.3;
  if (long >= 0) row(`prefill of 2000 at >= ${factor} x tokens/s`, speedup(long), speedup(long) >= factor);
  if (one >= 0) row('decode of 1 at <= 0.85 x ms/token', 1 / speedup(one), 1 / speedup(one) <= 0.85);
  if (one >= 0 && four >= 0) {
    const gain = median(c.ms[one].map((ms, r) => (4 * ms) / c.ms[four][r]));
    row('four sequences at >= 2.2 x the tokens/s of one', gain, gain >= 2.2);
  }
  return rows;
}

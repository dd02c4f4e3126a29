/**
 * Measures our engine and llama.cpp on one shape, in turns: every round measures each cell once on every engine, one
 * right after the other and in alternating order, so that disturbances by other programs fall on all alike. Only ratios
 * within one run mean anything.
 */
import { access, mkdir, readFile, rename } from 'node:fs/promises';
import { availableParallelism } from 'node:os';
import { basename, join, resolve } from 'node:path';
import { parseArgs } from 'node:util';
import { median } from '../../dist/bench/measure/statistics.js';
import { run } from '../../dist/bench/harness/run.js';
import { PEERS } from '../../dist/bench/peers/report.js';
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
    out: { type: 'string', default: join(import.meta.dirname, '../results') },
    name: { type: 'string' },
    json: { type: 'string' },
  },
});
if (flags.model === undefined) throw new Error('--model DIR is missing: give the folder of a bundle, twice to compare two');

const numbers = (text) => text.split(',').map(Number);

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

const peerVersion = JSON.parse(
  await readFile(join(import.meta.dirname, 'node_modules/node-llama-cpp/package.json'), 'utf8'),
).version;
const models = manifests.map((manifest, i) => ({ name: basename(flags.model[i]), manifest }));
const command = ['node', 'bench/peers/engine-vs-llama-cpp.mjs', ...process.argv.slice(2)].join(' ');
const { prompt, batch, context, chunk, rounds, threads, spin } = flags;
const settings = { prompt, batch, context, chunk, rounds, threads, spin, peer: `node-llama-cpp ${peerVersion}` };
await run(PEERS, { ...flags, command }, { models, settings }, measure);

async function measure(onProgress) {
  try {
    for (const c of contestants) c.loadMs = await c.process.ask({ do: 'load', options: c.options });
    for (let round = -1; round < Number(flags.rounds); round++) {
      onProgress(round < 0 ? 'warming up' : `round ${round + 1} of ${flags.rounds}`);
      for (const [i, cell] of cells.entries()) {
        const turn = (round + i) % 2 === 0 ? contestants : contestants.toReversed();
        for (const c of turn) {
          const value = await c.process.ask(cell);
          if (round >= 0) c.ms[i].push(cell.do === 'decode' ? median(value) : value);
        }
      }
    }
    for (const c of contestants) c.memory = await c.process.ask({ do: 'memory' });
  } finally {
    for (const c of contestants) c.process.stop();
  }
  const engines = contestants.map(({ name, w8a8 = false, loadMs, memory, ms }) => ({ name, w8a8, loadMs, memory, ms }));
  return { cells, engines };
}

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

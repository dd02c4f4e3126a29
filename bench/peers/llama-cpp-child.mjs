/** llama.cpp in a process of its own. It speaks the protocol of bench/engine/child.ts over IPC. */
import { readFile } from 'node:fs/promises';
import { getLlama } from 'node-llama-cpp';

const GREEDY = { temperature: 0, yieldEogToken: true };
let sequences;

async function load({ model: modelPath, threads, slots, capacity, flashAttention }) {
  const startMs = performance.now();
  const llama = await getLlama({ gpu: false, build: 'never', logLevel: 'error', maxThreads: threads });
  const model = await llama.loadModel({ modelPath });
  const context = await model.createContext({
    contextSize: capacity,
    batchSize: 2048,
    threads: { ideal: threads, min: threads },
    sequences: slots,
    flashAttention,
  });
  sequences = Array.from({ length: slots }, () => context.getSequence());
  await prefill({ tokens: 2 });
  return performance.now() - startMs;
}

/** The token ids that our engine computes as well: see bench/engine/subject.ts. */
const promptIds = (tokens) => Array.from({ length: tokens }, (_, i) => (i * 7919) % 150_000);

async function prefill({ tokens }) {
  const sequence = sequences[0];
  await sequence.clearHistory();
  const startMs = performance.now();
  const output = sequence.evaluate(promptIds(tokens), GREEDY);
  await output.next();
  const ms = performance.now() - startMs;
  await output.return();
  return ms;
}

async function decode({ batch, context, steps }) {
  const active = sequences.slice(0, batch);
  for (const sequence of active) await fill(sequence, context);
  const outputs = active.map((sequence) => sequence.evaluate([1], GREEDY));
  const times = [];
  for (let i = 0; i < steps; i++) {
    const startMs = performance.now();
    // All sequences ask within one turn of the event loop, so the library puts them into one batch.
    await Promise.all(outputs.map((output) => output.next()));
    times.push(performance.now() - startMs);
  }
  for (const output of outputs) await output.return();
  return times;
}

/** Leaves `context` tokens in the sequence. */
async function fill(sequence, context) {
  if (sequence.nextTokenIndex < context) {
    await sequence.clearHistory();
    await sequence.evaluateWithoutGeneratingNewTokens(promptIds(context));
  }
  await sequence.eraseContextTokenRanges([{ start: context, end: sequence.nextTokenIndex }]);
}

async function memory() {
  const text = await readFile('/proc/self/smaps_rollup', 'utf8').catch(() => undefined);
  if (text === undefined) return { rss: process.memoryUsage.rss() };
  const bytes = (field) => Number(new RegExp(`^${field}:\\s+(\\d+) kB$`, 'm').exec(text)?.[1]) * 1024;
  return { rss: bytes('Rss'), pss: bytes('Pss'), anonymous: bytes('Anonymous') };
}

const perform = { load: ({ options }) => load(options), prefill, decode, memory };

process.on('message', (task) => {
  perform[task.do](task).then(
    (value) => process.send({ value }),
    (error) => process.send({ error: String(error) }),
  );
});
process.on('disconnect', () => process.exit(0));

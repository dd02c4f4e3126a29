/**
 * The decoder on the tests' software GPU: the same tokens as on the CPU, however a sequence is computed. ONNX Runtime
 * copies an input to the device when it is bound. Where inputs were bound only once, every step computed with the ids
 * and lengths of the first one.
 */
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, onTestFinished, test, vi } from 'vitest';
import { CPU } from '../../services/lib/engine/device.ts';
import type { KvUse } from '../../services/lib/engine/device-kv.ts';
import { kvLayoutOf } from '../../services/lib/engine/kv-layout.ts';
import { Binding } from '../../services/lib/engine/ort.ts';
import type { DecoderSession } from '../../services/lib/engine/session.ts';
import { KvReceiver, KvSender } from '../../services/lib/kv/handoff.ts';
import { type Bundle, openBundle } from '../../services/lib/model/bundle/bundle.ts';
import { exportBundle } from '../../services/lib/model/bundle/export-bundle.ts';
import { PACKAGE_ROOT } from '../../services/lib/process/package-root.ts';
import { NO_SOFT_TOKENS, type SoftTokens, softWithin } from '../../services/lib/request/token-prompt.ts';
import { decoderOn, softwareGpu } from '../support/device-decoder.ts';
import { TINY_CODER } from '../support/models.ts';
import { COMPILING_MS, DEVICE_MODEL } from '../support/vulkan.ts';

const CAPACITY = 512;

const gpu = softwareGpu();
let dir: string;
let bundle: Bundle;
let cpu: DecoderSession;

beforeAll(async () => {
  dir = await mkdtemp(join(tmpdir(), 'llavacode-device-'));
  bundle = await exported('device-model', DEVICE_MODEL);
  cpu = await onCpu(bundle);
}, COMPILING_MS);

afterAll(async () => {
  await cpu?.dispose();
  await rm(dir, { recursive: true, force: true });
});

async function exported(name: string, llm: string): Promise<Bundle> {
  await exportBundle({ llm, to: join(dir, name), precision: 'fp32' });
  return openBundle(join(dir, name));
}

const onCpu = async (model: Bundle) => (await decoderOn(CPU, model, { capacity: CAPACITY })).session;

/** A session on the device that is freed after the test, with its caches. */
async function onDevice(use: KvUse, model = bundle): Promise<DecoderSession> {
  const { session, dispose } = await decoderOn(gpu(), model, { capacity: CAPACITY, use });
  onTestFinished(dispose);
  return session;
}

const argmax = (row: Float32Array) => row.reduce((best, x, i) => (x > (row[best] as number) ? i : best), 0);

/** Token ids that are the same in every run. */
function promptOf(length: number, seed = 1): number[] {
  let x = seed;
  return Array.from({ length }, () => {
    x = (Math.imul(x, 1103515245) + 12345) & 0x7fffffff;
    return x % (bundle.manifest.llm.spec.vocab - 100);
  });
}

interface Computed {
  readonly size?: number;
  readonly soft?: SoftTokens;
  /** Positions that the slot holds already, or the slot `copyFrom` does. */
  readonly past?: number;
  readonly copyFrom?: number;
}

/** Computes a prompt in chunks; returns its first token. */
async function prefill(session: DecoderSession, slot: number, prompt: readonly number[], how: Computed = {}) {
  const { size = 1000, soft = NO_SOFT_TOKENS, past: from = 0, copyFrom } = how;
  let logits = new Float32Array(0);
  for (let past = from; past < prompt.length; past += size) {
    const ids = Int32Array.from(prompt.slice(past, past + size));
    const end = past + ids.length;
    const logitRows = end === prompt.length ? [ids.length - 1] : [];
    const first = copyFrom !== undefined && past === from ? { copyFrom } : {};
    const chunk = { slot, past, ids, soft: softWithin(soft, past, end), logitRows, ...first };
    logits = (await session.chunk(chunk)) as Float32Array<ArrayBuffer>;
  }
  session.pool.claim(slot, prompt.length);
  return argmax(logits);
}

/** Greedy tokens after `first`, of one sequence that the step spans alone. */
async function decode(session: DecoderSession, slot: number, length: number, first: number, count: number) {
  const tokens = [first];
  while (tokens.length < count) {
    const at = length + tokens.length - 1;
    tokens.push(argmax(await session.step(Int32Array.of(tokens.at(-1)!), Int32Array.of(at), slot)));
  }
  return tokens;
}

async function greedy(session: DecoderSession, slot: number, prompt: readonly number[], count: number, how?: Computed) {
  return decode(session, slot, prompt.length, await prefill(session, slot, prompt, how), count);
}

describe.each([
  ['steps', 0, {}],
  ['prompts', 1, { size: 128 }],
  ['both', 2, { size: 128 }],
] as const)('caches for %s', (use, slot, how) => {
  test('300 tokens and 24 more are those of the CPU', { timeout: COMPILING_MS }, async () => {
    const prompt = promptOf(300);
    const expected = await greedy(cpu, 0, prompt, 25);
    expect(new Set(expected).size).toBeGreaterThan(3);
    expect(await greedy(await onDevice(use), slot, prompt, 25, how)).toEqual(expected);
  });
});

/** Tokens of the model that ships after `promptOf(300)`: right, and with inputs that are bound only once. */
const RIGHT = [223, 3258, 220, 396, 1822];
const BOUND_ONCE = [223, 3258, 3258, 3258, 3258];

/** Makes the device keep the inputs of a step from its first run on, as before each run bound them anew. */
function bindStepsOnce(): void {
  const { input, constant } = Binding.prototype;
  const ofSteps = new Set<Binding>();
  vi.spyOn(Binding.prototype, 'constant').mockImplementation(function (this: Binding, name, value) {
    ofSteps.add(this); // only steps have inputs that never change
    return constant.call(this, name, value);
  });
  let within = false;
  vi.spyOn(Binding.prototype, 'input').mockImplementation(function (this: Binding, name, value) {
    if (within || !ofSteps.has(this)) return input.call(this, name, value);
    within = true;
    constant.call(this, name, value);
    within = false;
    return this;
  });
  onTestFinished(() => void vi.restoreAllMocks());
}

describe('the model that ships', { timeout: COMPILING_MS }, () => {
  let model: Bundle;
  beforeAll(async () => {
    model = await exported('tiny-coder', TINY_CODER);
  });
  // Every chunk has 32 tokens or more: kernels for fewer would take 38 s more to compile.
  const tokensOf = async (count: number) =>
    greedy(await onDevice('both', model), 1, promptOf(300), count, { size: 100 });

  test('gives the tokens of the CPU, 300 and 24 more', async () => {
    const plain = await onCpu(model);
    const expected = await greedy(plain, 0, promptOf(300), 25);
    await plain.dispose();
    expect(expected.slice(0, 5)).toEqual(RIGHT);
    expect(await tokensOf(25)).toEqual(expected);
  });

  test('gives the wrong tokens where inputs are bound only once, and the documents name both', async () => {
    bindStepsOnce();
    expect(await tokensOf(5)).toEqual(BOUND_ONCE);
    for (const name of ['CHANGELOG.md', 'deploy/GPU.md']) {
      const text = await readFile(join(PACKAGE_ROOT, name), 'utf8');
      for (const tokens of [RIGHT, BOUND_ONCE]) expect(text, name).toContain(`\`${tokens.join(' ')}\``);
    }
  });
});

test('soft tokens, and sequences of other lengths in one step, give the tokens of the CPU', {
  timeout: COMPILING_MS,
}, async () => {
  const { hidden } = bundle.manifest.llm.spec;
  const positions = Int32Array.of(3, 4, 5, 36);
  const vectors = Float32Array.from({ length: positions.length * hidden }, (_, i) => Math.sin(i) / 8);
  const soft = { positions, vectors };
  const prompts = [promptOf(40, 2), promptOf(7, 3), promptOf(23, 4)] as const;
  const hows = [{ soft, size: 30 }, {}, { size: 9 }] as const;
  const count = 6;
  const expected: number[][] = [];
  for (const [i, prompt] of prompts.entries()) expected.push(await greedy(cpu, 0, prompt, count, hows[i]!));
  const session = await onDevice('both');
  const outputs: number[][] = [];
  for (const [slot, prompt] of prompts.entries()) outputs.push([await prefill(session, slot, prompt, hows[slot]!)]);
  for (let step = 0; step + 1 < count; step++) {
    const ids = Int32Array.from(outputs, (tokens) => tokens.at(-1)!);
    const logits = await session.step(
      ids,
      Int32Array.from(prompts, ({ length }) => length + step),
    );
    const { vocabSize } = session;
    for (const [row, tokens] of outputs.entries()) {
      tokens.push(argmax(logits.subarray(row * vocabSize, (row + 1) * vocabSize)));
    }
  }
  expect(outputs).toEqual(expected);
});

test.each(['prompts', 'both'] as const)(
  'a prompt goes on from a beginning in another slot, also after a chunk that was cancelled; caches for %s',
  { timeout: COMPILING_MS },
  async (use) => {
    const prompt = promptOf(60, 5);
    const other = [...prompt.slice(0, 48), ...promptOf(9, 6)];
    const [expected, expectedOther] = [await greedy(cpu, 0, prompt, 4), await greedy(cpu, 1, other, 4)];
    const session = await onDevice(use);
    const first = await prefill(session, 1, prompt);
    const rest = Int32Array.from(other.slice(48));
    const cancelled = new AbortController();
    const chunk = { slot: 2, past: 48, ids: rest, soft: NO_SOFT_TOKENS, logitRows: [], copyFrom: 1 };
    const running = session.chunk(chunk, cancelled.signal);
    cancelled.abort(new Error('hung up'));
    await expect(running).rejects.toThrowError('hung up');
    const firstOther = await prefill(session, 2, other, { past: 48, copyFrom: 1 });
    expect(await decode(session, 1, prompt.length, first, 4)).toEqual(expected);
    expect(await decode(session, 2, other.length, firstOther, 4)).toEqual(expectedOther);
  },
);

describe('a hand-over', () => {
  async function handOver(from: DecoderSession, to: DecoderSession, fromSlot: number, toSlot: number) {
    const prompt = promptOf(100, 7);
    const first = await prefill(from, fromSlot, prompt, { size: 64 });
    const sender = new KvSender(from.pool.store, fromSlot);
    const receiver = new KvReceiver(to.pool.store, toSlot, '');
    receiver.manifest({
      fingerprint: '',
      layout: kvLayoutOf(bundle.manifest),
      dtype: 'float32',
      positions: prompt.length,
    });
    for (const [start, end] of [
      [0, 64],
      [64, prompt.length],
    ] as const) {
      for await (const frame of sender.pack(start, end)) await receiver.rows(frame);
    }
    receiver.end(sender.end([first]));
    to.pool.claim(toSlot, prompt.length);
    const expected = await greedy(cpu, 0, prompt, 6);
    expect(await decode(to, toSlot, prompt.length, first, 6)).toEqual(expected);
  }

  test('the CPU goes on with a prompt of the device', { timeout: COMPILING_MS }, async () => {
    await handOver(await onDevice('prompts'), cpu, 2, 1);
  });

  test('the device goes on with a prompt of the CPU', { timeout: COMPILING_MS }, async () => {
    await handOver(cpu, await onDevice('steps'), 1, 2);
  });
});

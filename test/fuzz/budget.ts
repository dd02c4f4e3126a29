/**
 * Fuzzing within a budget of time: FUZZ_SECONDS for all targets together (5 when not given), shared out by weight.
 * Seeds are new in every run; a failure prints its seed and the smallest input that still fails.
 */
import fc from 'fast-check';

const SECONDS = Number(process.env.FUZZ_SECONDS ?? 5);

/** Shares of the budget; a target is one call of {@link fuzz}. */
const WEIGHTS = {
  'HTTP bodies': 4,
  'bodies of editors': 4,
  'HTTP bytes': 2,
  'gRPC messages': 4,
  'gRPC bytes': 2,
  'Indexer calls': 1,
  'KV frames': 2,
  'KV pulls': 2,
  safetensors: 2,
  GGUF: 2,
  manifests: 1,
  tokenizers: 1,
  benchmarks: 1,
  'upload archives': 2,
  'upload JSON': 1,
  'store rows': 2,
} as const;
export type Target = keyof typeof WEIGHTS;

const TOTAL = Object.values(WEIGHTS).reduce((sum, weight) => sum + weight, 0);
const budgetMs = (target: Target) => (1000 * SECONDS * WEIGHTS[target]) / TOTAL;

/** Inputs that every target tries, however slow the machine is. */
const MIN_INPUTS = 20;

/** Limit of a fuzzing test: its budget, and minutes for the first inputs on a machine that is busy with other work. */
export const TIMEOUT_MS = 600_000 + 1000 * SECONDS;

/** An input that takes longer than this, in ms, hangs: it is far more than one takes on a busy machine. */
export const HANG_MS = 60_000;

/**
 * Tries inputs until the target's share of the budget is spent, at least {@link MIN_INPUTS}, and prints how many there
 * were.
 * @param check tells whether the input was taken, not refused: a fuzzer that is refused at the door tests little.
 */
export async function fuzz<T>(
  target: Target,
  inputs: fc.Arbitrary<T>,
  check: (input: T) => Promise<boolean> | boolean,
) {
  let [count, taken] = [0, 0];
  let last: Promise<boolean> | undefined;
  const property = fc.asyncProperty(inputs, async (input) => {
    count++;
    last = Promise.resolve(check(input));
    if (await last) taken++;
  });
  await fc.assert(property, { numRuns: MIN_INPUTS });
  await fc.assert(property, {
    numRuns: Number.MAX_SAFE_INTEGER,
    interruptAfterTimeLimit: budgetMs(target),
    markInterruptAsFailure: false,
  });
  await last; // when time is up it may be under way: what it uses is about to be closed
  process.stdout.write(`fuzzed ${target}: ${count} inputs, ${taken} of them taken\n`);
}

/** Bytes with a few of them changed, cut, doubled or put in. */
export const damaged = (bytes: fc.Arbitrary<Uint8Array>): fc.Arbitrary<Uint8Array> =>
  fc
    .tuple(
      bytes,
      fc.array(
        fc.record({
          how: fc.constantFrom('flip', 'set', 'cut', 'insert', 'repeat'),
          at: fc.double({ min: 0, max: 1, noNaN: true }),
          value: fc.nat(255),
          length: fc.integer({ min: 1, max: 64 }),
        }),
        { minLength: 1, maxLength: 4 },
      ),
    )
    .map(([original, changes]) => changes.reduce(changed, original));

function changed(
  bytes: Uint8Array,
  change: { readonly how: string; readonly at: number; readonly value: number; readonly length: number },
): Uint8Array {
  const at = Math.min(Math.floor(change.at * bytes.length), Math.max(0, bytes.length - 1));
  const [before, after] = [bytes.subarray(0, at), bytes.subarray(at)];
  if (change.how === 'cut') return Buffer.concat([before, after.subarray(change.length)]);
  if (change.how === 'insert') return Buffer.concat([before, Buffer.alloc(change.length, change.value), after]);
  if (change.how === 'repeat') return Buffer.concat([before, after.subarray(0, change.length), after]);
  if (bytes.length === 0) return bytes;
  const copy = Uint8Array.from(bytes);
  copy[at] = change.how === 'flip' ? copy[at]! ^ (1 << (change.value % 8)) : change.value;
  return copy;
}

/** A value with one part in some forty, at any depth, replaced by any JSON, left out, or joined by another one. */
export function distorted(value: unknown): fc.Arbitrary<unknown> {
  const here = (inner: fc.Arbitrary<unknown>) => seldom(inner, ANYTHING);
  const more = <T>(one: fc.Arbitrary<T>) => seldom(fc.constant<T[]>([]), fc.tuple(one));
  if (Array.isArray(value)) {
    const items = fc.tuple(...value.map(distorted));
    return here(fc.tuple(items, more(ANYTHING)).map((parts) => parts.flat()));
  }
  if (typeof value === 'object' && value !== null) {
    const fields = Object.entries(value).map(([name, field]) =>
      seldom(
        distorted(field).map((inner) => [[name, inner]]),
        fc.constant<unknown[][]>([]),
      ),
    );
    return here(
      fc
        .tuple(fc.tuple(...fields), more(fc.tuple(fc.string(), ANYTHING)))
        .map(([kept, extra]) => Object.fromEntries([...kept.flat(), ...extra])),
    );
  }
  return here(fc.constant(value));
}

const ANYTHING: fc.Arbitrary<unknown> = fc.oneof(
  fc.jsonValue({ maxDepth: 2 }),
  fc.constantFrom(-1, 0, 1, 2 ** 31, 2 ** 53, 1e308, '', '__proto__', null, [], {}),
);

const seldom = <T>(usual: fc.Arbitrary<T>, odd: fc.Arbitrary<T>) =>
  fc.oneof({ weight: 40, arbitrary: usual }, { weight: 1, arbitrary: odd });

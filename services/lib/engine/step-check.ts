/**
 * Whether a device computes decode steps right, in the ways in which a worker uses them: of one row and of all slots,
 * with rows of different lengths; twice each, because a step that is recorded by the first run is replayed by the
 * second, which must read the new inputs; and with the choice of the likeliest tokens where the device makes it. The
 * runs also compile the kernels.
 */
import {
  CHECKED_PROMPT,
  type CheckLimits,
  comparedRows,
  type DrivenDecoder,
  divergence,
  FEW_ROWS,
  promptIds,
  refusal,
} from './self-check.ts';

/** The part of a decoder that the check drives. */
export type SteppingDecoder = DrivenDecoder<'step' | 'pick' | 'picksTokens', 'slots'>;

/** Rows of a step that are compared: few, because a step of 256 slots has 150 MB of logits. */
const COMPARED = 16;
/** How much less likely than the likeliest a picked token may be, in nats: the order of sums may vary. */
const PICK_TOLERANCE = 0.05;

/**
 * Slot 0 holds the KV of the checked prompt. It is copied to all slots; each row of a step then goes on from a length
 * of its own with the token that follows there, so that the reference has what it must say.
 * @param reference what referenceOf gives on the CPU; its first rows are those of the prompt and a step after it.
 * @param device its name, for errors.
 * @throws ServingError provider_unavailable, with the figure, the limit and the remedy.
 */
export async function assertStepsRight(
  decoder: SteppingDecoder,
  reference: Float32Array,
  limits: CheckLimits,
  device: string,
): Promise<void> {
  const { store, slots } = decoder.pool;
  for (let slot = 1; slot < slots; slot++) await store.copy(0, slot, CHECKED_PROMPT);
  const prompt = promptIds(decoder.vocabSize);
  for (const rows of new Set([1, slots])) {
    for (const shift of [0, 3]) {
      const lengths = Int32Array.from({ length: rows }, (_, row) => CHECKED_PROMPT - ((row * 7 + shift) % 40));
      const ids = lengths.map((length) => prompt[length % CHECKED_PROMPT] as number);
      const logits = Float32Array.from(await decoder.step(ids, lengths));
      assertRows(logits, lengths, reference, { vocab: decoder.vocabSize, limits, device });
      if (decoder.picksTokens) assertPicks(await decoder.pick(ids, lengths), logits, decoder.vocabSize, device);
    }
  }
}

interface Checked {
  readonly vocab: number;
  readonly limits: CheckLimits;
  readonly device: string;
}

function assertRows(logits: Float32Array, lengths: Int32Array, reference: Float32Array, checked: Checked): void {
  const { vocab, limits, device } = checked;
  const rows = comparedRows(lengths.length, COMPARED);
  const row = (of: Float32Array, at: number) => of.subarray(at * vocab, (at + 1) * vocab);
  const kl = rows.reduce((sum, at) => sum + divergence(row(reference, lengths[at]!), row(logits, at), vocab), 0);
  const [mean, limit] = [kl / rows.length, FEW_ROWS * limits.kl];
  if (mean <= limit) return; // a number that is not finite fails, too
  throw refusal(
    device,
    `a decode step of ${lengths.length} rows has a KL divergence of ${mean.toExponential(1)} from the CPU's, and ` +
      `at most ${limit.toExponential(1)} is right for ${limits.precision}`,
  );
}

function assertPicks(tokens: Int32Array, logits: Float32Array, vocab: number, device: string): void {
  for (const at of comparedRows(tokens.length, COMPARED)) {
    const row = logits.subarray(at * vocab, (at + 1) * vocab);
    const likeliest = row.reduce((best, logit, id) => (logit > row[best]! ? id : best), 0);
    const token = tokens[at]!;
    if (row[likeliest]! - (row[token] ?? Number.NaN) <= PICK_TOLERANCE) continue;
    throw refusal(
      device,
      `of the logits of a decode step of ${tokens.length} rows it picks token ${token} in row ${at}, and ${likeliest} is the likeliest`,
    );
  }
}

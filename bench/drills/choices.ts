/** Requests for several seeded choices at once, compared with those of an undisturbed run. */
import type { CompletionBody, RagAnswer, Usage } from '../../services/client.ts';
import { ServingError } from '../../services/lib/process/errors.ts';
import type { Door } from '../system/tenants.ts';
import { ask } from './json-request.ts';
import { commonStart, type Reference, type StreamRecord } from './streams.ts';

/** Choices of each request. */
export const CHOICES = 2;

/** A request for several choices, with the answers that it must get. */
export interface ChoicesReference {
  readonly body: CompletionBody & { readonly n: number };
  /** Token ids by choice. */
  readonly tokenIds: readonly (readonly number[])[];
  readonly withoutContext: readonly (readonly number[])[];
}

/** @param door of a system that nothing disturbs. */
export async function makeChoices(door: Door, references: readonly Reference[]): Promise<ChoicesReference[]> {
  const choices: ChoicesReference[] = [];
  for (const [i, { body }] of references.entries()) {
    const drawn = { ...body, n: CHOICES, temperature: 0.8, seed: i };
    const { rag: _, ...plain } = drawn;
    const tokenIds = idsOf(await complete(door, drawn));
    choices.push({ body: drawn, tokenIds, withoutContext: idsOf(await complete(door, plain)) });
  }
  return choices;
}

interface Completion {
  readonly choices: readonly { readonly index: number; readonly token_ids: readonly number[] }[];
  readonly usage: Usage;
  readonly rag?: RagAnswer;
}

const complete = ({ url, apiKey }: Door, body: CompletionBody) =>
  ask<Completion>('POST', `${url}/v1/completions`, body, { apiKey });

const idsOf = ({ choices }: Completion) =>
  choices.toSorted((a, b) => a.index - b.index).map(({ token_ids }) => token_ids);

/** Checks that the choices are those of an undisturbed run, and that usage counts each once. */
export async function sendChoices(door: Door, reference: ChoicesReference, startMs: number): Promise<StreamRecord> {
  const now = () => performance.now() - startMs;
  const record = { sentMs: now(), firstMs: undefined, lost: 0, doubled: 0, longestGapMs: 0 };
  try {
    const answer = await complete(door, reference.body);
    const endedMs = now();
    const received = idsOf(answer);
    const degraded = answer.rag?.degraded;
    const expected = degraded ? reference.withoutContext : reference.tokenIds;
    const total = (count: (i: number) => number) =>
      Array.from({ length: Math.max(received.length, expected.length) }, (_, i) => count(i)).reduce((a, b) => a + b, 0);
    const common = (i: number) => commonStart(received[i] ?? [], expected[i] ?? []);
    const lost = total((i) => (expected[i]?.length ?? 0) - common(i));
    const doubled = total((i) => (received[i]?.length ?? 0) - common(i));
    if (answer.usage.completion_tokens !== received.flat().length) {
      return { ...record, endedMs, outcome: 'failed', code: 'wrong_usage', lost, doubled };
    }
    const ended = { ...record, firstMs: endedMs, endedMs, outcome: 'ok', lost, doubled, degraded } as const;
    if (lost === 0 && doubled === 0) return ended;
    return { ...ended, difference: { path: reference.body.rag?.path, received, expected } };
  } catch (error) {
    return { ...record, endedMs: now(), outcome: 'failed', code: ServingError.from(error, 'worker_lost').code };
  }
}

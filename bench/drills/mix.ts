/**
 * The traffic of a soak, as editors send it: completions whose clients leave, keystrokes of a session that supersede
 * each other in a repository that is being edited, several seeded choices at once, and uploads of a changed file.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import type { CompletionBody, RagAnswer, Usage } from '../../services/client.ts';
import { ServingError } from '../../services/lib/process/errors.ts';
import { EditedRepository } from './edited-repository.ts';
import { ask } from './json-request.ts';
import { commonStart, openLoop, type Reference, type StreamRecord, sendStream, sendTraffic } from './streams.ts';

/** Share of the rate for each kind of traffic; one burst of keystrokes is {@link KEYSTROKES} requests. */
const SHARES = { completions: 0.5, keystrokes: 0.1, choices: 0.15, uploads: 0.05 };
export type Kind = keyof typeof SHARES;
export const KINDS = Object.keys(SHARES) as Kind[];

/** Share of the clients of plain completions that leave before the end. */
const LEAVING = 0.2;
/** Requests of one burst of keystrokes; each but the last is superseded by the next one. */
const KEYSTROKES = 3;
const BETWEEN_KEYSTROKES_MS = 60;
const CHOICES = 2;

/** A request for several choices, with the answers that it must get. */
export interface ChoicesReference {
  readonly body: CompletionBody & { readonly n: number };
  /** Token ids by choice. */
  readonly tokenIds: readonly (readonly number[])[];
  readonly withoutContext: readonly (readonly number[])[];
}

interface Mix {
  readonly references: readonly Reference[];
  readonly edited: readonly Reference[];
  readonly choices: readonly ChoicesReference[];
  readonly repository: Pick<EditedRepository, 'edit'>;
}

/**
 * Asks an undisturbed system for the answers that the traffic must get.
 * @param url of that system.
 * @param dir folder of the repository that the references are about.
 */
export async function makeMix(url: string, dir: string, references: readonly Reference[]): Promise<Mix> {
  const { repository, references: edited } = await EditedRepository.make(url, dir, references);
  const choices: ChoicesReference[] = [];
  for (const [i, { body }] of references.entries()) {
    const drawn = { ...body, n: CHOICES, temperature: 0.8, seed: i };
    const { rag: _, ...plain } = drawn;
    const tokenIds = idsOf(await complete(url, drawn));
    choices.push({ body: drawn, tokenIds, withoutContext: idsOf(await complete(url, plain)) });
  }
  return { references, edited, choices, repository };
}

/** Sends traffic until the signal is aborted. @returns the records of all requests by kind, when the last has ended. */
export async function sendMix(
  url: string,
  { references, edited, choices, repository }: Mix,
  { rate, seed }: { readonly rate: number; readonly seed: number },
  startMs: number,
  until: AbortSignal,
): Promise<Readonly<Record<Kind, readonly StreamRecord[]>>> {
  const traffic = (kind: Kind) => ({ rate: rate * SHARES[kind], seed: seed + KINDS.indexOf(kind) });
  const editors = edited.map((reference, i) => new Editor(url, `soak-${i}`, reference, startMs));
  const [completions, keystrokes, drawn, uploads] = await Promise.all([
    sendTraffic(() => url, references, { ...traffic('completions'), leaving: LEAVING }, startMs, until),
    openLoop(traffic('keystrokes'), startMs, until, (random) => editors[random.below(editors.length)]!.type()),
    openLoop(traffic('choices'), startMs, until, (random) =>
      sendChoices(url, choices[random.below(choices.length)]!, startMs),
    ),
    repository.edit(traffic('uploads'), startMs, until),
  ]);
  return { completions, keystrokes: keystrokes.flat(), choices: drawn, uploads };
}

/** One session of an editor, which types one burst at a time. */
export class Editor {
  readonly #url: string;
  readonly #reference: Reference;
  readonly #startMs: number;
  #last: Promise<readonly StreamRecord[]> = Promise.resolve([]);

  constructor(url: string, session: string, reference: Reference, startMs: number) {
    this.#url = url;
    this.#reference = { ...reference, body: { ...reference.body, session } };
    this.#startMs = startMs;
  }

  /** Sends a burst of keystrokes, each of which asks before the one before it has been answered. */
  type(): Promise<readonly StreamRecord[]> {
    this.#last = this.#last.then(() => this.#burst());
    return this.#last;
  }

  async #burst(): Promise<StreamRecord[]> {
    const sent: Promise<StreamRecord>[] = [];
    for (let i = 0; i < KEYSTROKES; i++) {
      if (i > 0) await sleep(BETWEEN_KEYSTROKES_MS);
      sent.push(sendStream(this.#url, this.#reference, this.#startMs));
    }
    const records = await Promise.all(sent);
    // Requests may overtake each other on their way, so any of them may be superseded, but not all.
    const answered = records.some(({ code }) => code !== 'superseded');
    return records.map((record, i) => {
      if (record.code !== 'superseded' || (!answered && i === records.length - 1)) return record;
      const { code: _, ...rest } = record;
      return { ...rest, outcome: 'left' };
    });
  }
}

interface Completion {
  readonly choices: readonly { readonly index: number; readonly token_ids: readonly number[] }[];
  readonly usage: Usage;
  readonly rag?: RagAnswer;
}

const complete = (url: string, body: CompletionBody) => ask<Completion>('POST', `${url}/v1/completions`, body);

const idsOf = ({ choices }: Completion) =>
  choices.toSorted((a, b) => a.index - b.index).map(({ token_ids }) => token_ids);

/** Checks that the choices are those of an undisturbed run, and that usage counts each once. */
export async function sendChoices(url: string, reference: ChoicesReference, startMs: number): Promise<StreamRecord> {
  const now = () => performance.now() - startMs;
  const record = { sentMs: now(), firstMs: undefined, lost: 0, doubled: 0, longestGapMs: 0 };
  try {
    const answer = await complete(url, reference.body);
    const endedMs = now();
    const received = idsOf(answer);
    const degraded = answer.rag?.degraded !== undefined;
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

/**
 * The traffic of a soak, as editors send it: completions whose clients leave, keystrokes of a session that supersede
 * each other in a repository that is being edited, several seeded choices at once, and uploads of a changed file.
 */
import type { Door } from '../system/tenants.ts';
import { CHOICES, type ChoicesReference, makeChoices, sendChoices } from './choices.ts';
import { EditedRepository } from './edited-repository.ts';
import { Editor } from './editor.ts';
import {
  OUTPUT_TOKENS,
  openLoop,
  PROMPT_TOKENS,
  type Reference,
  type StreamRecord,
  sendTraffic,
  type Traffic,
} from './streams.ts';

/** Share of the rate for each kind of traffic; one burst of keystrokes is several requests. */
const SHARES = { completions: 0.5, keystrokes: 0.1, choices: 0.15, uploads: 0.05 };
export type Kind = keyof typeof SHARES;
export const KINDS = Object.keys(SHARES) as Kind[];

/**
 * Tokens per second, of prompts and outputs, that the mix makes at a rate of 1 if nothing is cached. Of a burst of
 * keystrokes one request is answered; uploads make none.
 */
export const TOKENS_PER_REQUEST_A_SECOND =
  (SHARES.completions + SHARES.keystrokes) * (PROMPT_TOKENS + OUTPUT_TOKENS) +
  SHARES.choices * (PROMPT_TOKENS + CHOICES * OUTPUT_TOKENS);

/** Share of the clients of plain completions that leave before the end. */
const LEAVING = 0.2;

interface Mix {
  readonly references: readonly Reference[];
  readonly edited: readonly Reference[];
  readonly choices: readonly ChoicesReference[];
  readonly repository: Pick<EditedRepository, 'edit'>;
}

/**
 * Asks an undisturbed system for the answers that the traffic must get.
 * @param door of that system.
 * @param dir folder of the repository that the references are about.
 */
export async function makeMix(door: Door, dir: string, references: readonly Reference[]): Promise<Mix> {
  const { repository, references: edited } = await EditedRepository.make(door, dir, references);
  return { references, edited, choices: await makeChoices(door, references), repository };
}

/** Sends traffic until the signal is aborted. @returns the records of all requests by kind, when the last has ended. */
export async function sendMix(
  door: Door,
  { references, edited, choices, repository }: Mix,
  { rate, seed, onRecord }: Pick<Traffic, 'rate' | 'seed' | 'onRecord'>,
  startMs: number,
  until: AbortSignal,
): Promise<Readonly<Record<Kind, readonly StreamRecord[]>>> {
  const traffic = (kind: Kind) => ({ rate: rate * SHARES[kind], seed: seed + KINDS.indexOf(kind), onRecord });
  const noted = async <T extends StreamRecord | readonly StreamRecord[]>(sent: Promise<T>): Promise<T> => {
    const ended = await sent;
    for (const record of [ended].flat() as StreamRecord[]) onRecord?.(record);
    return ended;
  };
  const editors = edited.map((reference, i) => new Editor(door, `soak-${i}`, reference, startMs));
  const [completions, keystrokes, drawn, uploads] = await Promise.all([
    sendTraffic(door, references, { ...traffic('completions'), leaving: LEAVING }, startMs, until),
    openLoop(traffic('keystrokes'), startMs, until, (random) => noted(editors[random.below(editors.length)]!.type())),
    openLoop(traffic('choices'), startMs, until, (random) =>
      noted(sendChoices(door, choices[random.below(choices.length)]!, startMs)),
    ),
    repository.edit(traffic('uploads'), startMs, until),
  ]);
  return { completions, keystrokes: keystrokes.flat(), choices: drawn, uploads };
}

export interface MixCounts {
  readonly sent: number;
  readonly ok: number;
  /** Requests whose client left, or that a newer request of the same session superseded. */
  readonly left: number;
}

/** Counts the requests of each kind by their outcome. */
export function countMix(sent: Readonly<Record<Kind, readonly StreamRecord[]>>): Readonly<Record<Kind, MixCounts>> {
  const count = (kind: Kind): MixCounts => {
    const ended = (as: StreamRecord['outcome']) => sent[kind].filter(({ outcome }) => outcome === as).length;
    return { sent: sent[kind].length, ok: ended('ok'), left: ended('left') };
  };
  return Object.fromEntries(KINDS.map((kind) => [kind, count(kind)])) as Record<Kind, MixCounts>;
}

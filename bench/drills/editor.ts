/** An editor whose keystrokes supersede each other's requests. */
import { setTimeout as sleep } from 'node:timers/promises';
import type { Door } from '../system/tenants.ts';
import { type Reference, type StreamRecord, sendStream } from './streams.ts';

/** Requests of one burst of keystrokes; each but the last is superseded by the next one. */
const KEYSTROKES = 3;
const BETWEEN_KEYSTROKES_MS = 60;

/** One session of an editor, which types one burst at a time. */
export class Editor {
  readonly #door: Door;
  readonly #reference: Reference;
  readonly #startMs: number;
  #last: Promise<readonly StreamRecord[]> = Promise.resolve([]);

  constructor(door: Door, session: string, reference: Reference, startMs: number) {
    this.#door = door;
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
      sent.push(sendStream(this.#door, this.#reference, this.#startMs));
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

/**
 * Prompts of one tenant that are the same and in flight at once: some editors send one prompt several times, to choose
 * among the answers. The first is computed; the others wait until it is, and then find its KV at the worker that has
 * it.
 */
import { createHash } from 'node:crypto';
import { Deferred } from '../../lib/async/deferred.ts';
import type { TokenPrompt } from '../../lib/request/token-prompt.ts';

/** A shorter prompt is computed again at once: there is little to save, in tokens. */
const LEAST_TOKENS = 64;

/** The place of one prompt among those that are the same. */
export interface SamePrompt {
  /** host:port of the worker that has just computed it; undefined for the first one. */
  readonly worker: string | undefined;
  /** Its KV can be reused at a worker from now on. */
  computed(worker: string): void;
  /** It is over, one way or another: another one may be computed in its place. Calling it twice is harmless. */
  end(): void;
}

const ALONE: SamePrompt = { worker: undefined, computed: () => {}, end: () => {} };

export class SamePrompts {
  /** First prompts that are not computed yet, and where each is then; undefined if it ended before. */
  readonly #first = new Map<string, Promise<string | undefined>>();

  /**
   * Waits for a prompt that is the same, as long as there is one that is not computed.
   * @param salt only prompts of the same salt share KV; it holds the tenant's name.
   * @throws the signal's reason.
   */
  async enter({ ids, soft }: TokenPrompt, salt: string, signal: AbortSignal): Promise<SamePrompt> {
    if (ids.length < LEAST_TOKENS) return ALONE;
    const bytes = createHash('sha256').update(`${salt}\0`).update(ids).update(soft.positions).update(soft.vectors);
    const key = bytes.digest('base64');
    for (let first = this.#first.get(key); first !== undefined; first = this.#first.get(key)) {
      const worker = await unlessAborted(first, signal);
      if (worker !== undefined) return { ...ALONE, worker };
    }
    const computed = new Deferred<string | undefined>();
    this.#first.set(key, computed.promise);
    const settle = (worker: string | undefined) => {
      if (this.#first.get(key) === computed.promise) this.#first.delete(key);
      computed.resolve(worker);
    };
    return { worker: undefined, computed: settle, end: () => settle(undefined) };
  }
}

function unlessAborted<T>(work: Promise<T>, signal: AbortSignal): Promise<T> {
  return new Promise((resolve, reject) => {
    const abort = () => reject(signal.reason);
    if (signal.aborted) return abort();
    signal.addEventListener('abort', abort, { once: true });
    work.then(resolve, reject).finally(() => signal.removeEventListener('abort', abort));
  });
}

/**
 * The bundles of the bench, made one after the other while the first ones are measured already. Making one is work for
 * the CPU, and measuring a device leaves most cores idle; where there are fewer than four, a bundle is made only when a
 * part asks for it, so that nothing is measured meanwhile.
 */
import { availableParallelism } from 'node:os';
import { join } from 'node:path';
import { Deferred } from '../../services/lib/async/deferred.ts';
import { PACKAGE_ROOT } from '../../services/lib/process/package-root.ts';
import { openModel } from '../system/model.ts';
import { TINY } from './command.ts';

/** Cores from which on bundles are made while others are measured. */
const CORES_TO_SHARE = 4;

interface Wanted {
  readonly model: string;
  readonly precision: string;
}

export class Bundles {
  readonly #data: string;
  readonly #stop = new AbortController();
  readonly #made = new Map<string, Promise<string>>();
  #last: Promise<unknown> = Promise.resolve();

  /**
   * @param data folder of the bundles.
   * @param wanted in the order in which they will be asked for.
   */
  constructor(data: string, wanted: readonly Wanted[], cores = availableParallelism()) {
    this.#data = data;
    if (cores < CORES_TO_SHARE) return;
    for (const { model, precision } of wanted) {
      if (!this.#made.has(nameOf(model, precision))) this.#make(model, precision);
    }
  }

  /**
   * The folder of a bundle; waits until it is made.
   * @throws ServingError internal if it cannot be made; the signal's reason.
   */
  async get(model: string, precision: string, signal: AbortSignal): Promise<string> {
    signal.throwIfAborted();
    const made = this.#made.get(nameOf(model, precision)) ?? this.#make(model, precision);
    const over = new Deferred<never>();
    const onAbort = () => over.reject(signal.reason);
    signal.addEventListener('abort', onAbort, { once: true });
    try {
      return await Promise.race([made, over.promise]);
    } finally {
      signal.removeEventListener('abort', onAbort);
    }
  }

  /** Ends the process that makes a bundle now, and makes no more. */
  async stop(): Promise<void> {
    this.#stop.abort();
    await this.#last;
  }

  /** One at a time: two would compete for the disk and for memory. */
  #make(model: string, precision: string): Promise<string> {
    const { signal } = this.#stop;
    const made = this.#last.then(async () => {
      signal.throwIfAborted();
      return (await openModel(pathOf(model), { data: this.#data, precision }, signal)).bundle;
    });
    this.#made.set(nameOf(model, precision), made);
    this.#last = made.catch(() => {}); // told to whoever asks for this bundle
    return made;
  }
}

const nameOf = (model: string, precision: string) => `${model} ${precision}`;

/** What {@link openModel} takes for a name of the command line. */
export const pathOf = (model: string) => (model === TINY ? join(PACKAGE_ROOT, 'models', 'tiny-coder') : model);

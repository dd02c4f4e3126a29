/**
 * Which prefill worker has the KV of another one that is gone. A worker may keep KV in a folder (`--kv-disk-dir`): it
 * says which, and whoever says the same later has that KV, be it the same worker after a restart, at another address,
 * or one that shares the folder.
 */
import type { WorkerDescription__Output } from '../../lib/rpc/gen/llavacode/v1/WorkerDescription.ts';

interface Described {
  readonly address: string;
  readonly description: Pick<WorkerDescription__Output, 'kvFolder'> | undefined;
}

/** Addresses whose folder is remembered, those that were heard of last: a restart in a cluster makes a new one. */
const MOST_ADDRESSES = 1000;

export class KvFolders {
  /** By address, the one that was heard of last at the end. */
  readonly #folders = new Map<string, string>();

  /** Notes what workers say. */
  heard(workers: Iterable<Described>): void {
    for (const { address, description } of workers) {
      if (description === undefined) continue;
      this.#folders.delete(address);
      if (description.kvFolder) this.#folders.set(address, description.kvFolder);
    }
    for (const address of this.#folders.keys()) {
      if (this.#folders.size <= MOST_ADDRESSES) break;
      this.#folders.delete(address);
    }
  }

  /**
   * The worker that has what the worker at `address` had: that worker, or the first one with its folder.
   * @param workers that are usable.
   */
  heirOf<W extends Described>(address: string | undefined, workers: readonly W[]): W | undefined {
    const itself = workers.find((worker) => worker.address === address);
    if (itself !== undefined || address === undefined) return itself;
    const folder = this.#folders.get(address);
    return folder === undefined ? undefined : workers.find(({ description }) => description?.kvFolder === folder);
  }
}

/** The name under which a worker is the home of sessions: that of its folder, which outlives its address. */
export const homeName = ({ address, description }: Described) => description?.kvFolder || address;

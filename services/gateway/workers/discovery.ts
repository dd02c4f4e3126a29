/**
 * The search for the workers of one role. A name server or registry that does not answer changes nothing: the workers
 * themselves are asked whether they are there.
 */
import { Deferred } from '../../lib/async/deferred.ts';
import { repeatUntilAborted } from '../../lib/async/repeat.ts';
import type { Logger } from '../../lib/process/log.ts';
import type { AddressSource } from './address-sources.ts';

export interface Discovery {
  /** Resolves when the first look has been taken. */
  readonly first: Promise<void>;
  close(): void;
}

/** Tells `onAddresses` where workers are: at once for given addresses, and whenever the addresses change. */
export function watchAddresses(
  sources: readonly AddressSource[],
  onAddresses: (addresses: readonly string[]) => void,
  log: Pick<Logger, 'warn'>,
): Discovery {
  const closing = new AbortController();
  const found = sources.map((): readonly string[] => []);
  const look = async (source: AddressSource, index: number) => {
    try {
      const addresses = await source.list();
      if (closing.signal.aborted || addresses.join() === found[index]!.join()) return;
      found[index] = addresses;
      onAddresses([...new Set(found.flat())]);
    } catch (err) {
      if (!closing.signal.aborted) log.warn({ err }, 'looking for workers failed: the known workers stay');
    }
  };
  // Each source is asked at its own pace: one that is slow to answer does not delay the others.
  const firsts = sources.map((source, index) => {
    const first = new Deferred<void>();
    void repeatUntilAborted(closing.signal, async () => {
      await look(source, index);
      first.resolve();
      return source.everyMs;
    });
    return first.promise;
  });
  return {
    first: Promise.all(firsts).then(() => {}),
    close: () => {
      closing.abort();
      for (const source of sources) source.close();
    },
  };
}

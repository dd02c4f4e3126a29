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

/** The addresses that one source knows. */
interface Found {
  listed: readonly string[];
  /** Addresses that it listed before, and when a look missed each for the first time, in ms. */
  readonly missedAtMs: Map<string, number>;
}

/**
 * Tells `onAddresses` where workers are: at once for given addresses, and whenever the addresses change.
 * @param onAddresses gets the addresses that are listed, and those that are not any more and may be used if the workers
 *   answer.
 */
export function watchAddresses(
  sources: readonly AddressSource[],
  onAddresses: (listed: readonly string[], lapsed: readonly string[]) => void,
  log: Pick<Logger, 'warn'>,
): Discovery {
  const closing = new AbortController();
  const found = sources.map((): Found => ({ listed: [], missedAtMs: new Map() }));
  const look = async (source: AddressSource, index: number) => {
    try {
      const listed = await source.list();
      if (closing.signal.aborted || !update(found[index]!, listed, source.lapseMs)) return;
      const all = new Set(found.flatMap((each) => each.listed));
      const lapsed = new Set(found.flatMap(({ missedAtMs }) => [...missedAtMs.keys()]));
      onAddresses(
        [...all],
        [...lapsed].filter((address) => !all.has(address)),
      );
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

/** Takes the result of a look. @returns whether anything has changed. */
function update(found: Found, listed: readonly string[], lapseMs: number): boolean {
  const { missedAtMs } = found;
  const said = () => `${found.listed.join()} ${[...missedAtMs.keys()].join()}`;
  const before = said();
  const nowMs = performance.now();
  for (const address of found.listed) if (!missedAtMs.has(address)) missedAtMs.set(address, nowMs);
  for (const address of listed) missedAtMs.delete(address);
  for (const [address, sinceMs] of missedAtMs) if (nowMs - sinceMs >= lapseMs) missedAtMs.delete(address);
  found.listed = listed;
  return said() !== before;
}

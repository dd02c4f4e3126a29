/**
 * Where the workers of one role are: addresses that are given, all addresses of a DNS name, or what workers have written
 * into a registry. A name or registry that does not answer changes nothing: whether workers are there, they say themselves.
 */
import { lookup } from 'node:dns/promises';
import { Deferred } from '../../lib/async/deferred.ts';
import { repeatUntilAborted } from '../../lib/async/repeat.ts';
import type { Logger } from '../../lib/process/log.ts';
import { WorkerRegistry, type WorkerRole } from '../../lib/redis/worker-registry.ts';

export interface AddressSource {
  /** host:port of every worker that it knows of. */
  list(): Promise<readonly string[]>;
  close(): void;
  /** Pause between two looks; undefined where one is enough. */
  readonly everyMs: number | undefined;
}

export interface Discovery {
  /** Resolves when the first look has been taken. */
  readonly first: Promise<void>;
  close(): void;
}

/** Shorter than new prompts wait for a worker: one that is restarted elsewhere is known before the next one goes. */
const LOOK_EVERY_MS = 1_000;
/** Longer than workers take to write their entries anew into a registry that came back empty. */
const LOOKS_MISSED = 4;

/**
 * Tells `onAddresses` where workers are, at once for those that are given and whenever it changes.
 * @param list host:port, dns:name:port or redis://…, as the setting has them.
 * @throws ServingError config_invalid for a bad URL.
 */
export function watchAddresses(
  list: readonly string[],
  role: WorkerRole,
  onAddresses: (addresses: readonly string[]) => void,
  log: Logger,
): Discovery {
  return watchSources(sourcesOf(list, role), onAddresses, log.child({ role }));
}

export function watchSources(
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
      if (!closing.signal.aborted) log.warn({ err }, 'looking for workers failed: those known stay');
    }
  };
  // Each at its own pace: one that is slow to answer keeps no other from being asked again.
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

function sourcesOf(list: readonly string[], role: WorkerRole): AddressSource[] {
  const isName = (item: string) => item.startsWith('dns:');
  const isRegistry = (item: string) => item.includes('://'); // a host may be called redis as well
  const given = list.filter((item) => !isName(item) && !isRegistry(item));
  const names = list.filter(isName);
  const registries = list.filter(isRegistry);
  return [
    { everyMs: undefined, list: async () => given, close: () => {} },
    ...names.map((name) => dnsSource(name.slice('dns:'.length))),
    ...registries.map((url) => registrySource(new WorkerRegistry(url), role)),
  ];
}

/** Every address of a name, as the system resolves it: a headless service of Kubernetes, or a name in /etc/hosts. */
export function dnsSource(hostAndPort: string, resolve: typeof lookup = lookup): AddressSource {
  const colon = hostAndPort.lastIndexOf(':');
  const [host, port] = [hostAndPort.slice(0, colon), hostAndPort.slice(colon + 1)];
  return {
    everyMs: LOOK_EVERY_MS,
    list: async () => {
      const found = await resolve(host, { all: true });
      return found.map(({ address, family }) => (family === 6 ? `[${address}]:${port}` : `${address}:${port}`)).sort();
    },
    close: () => {},
  };
}

/**
 * An entry counts until it was missed in several looks: whether a worker is there it says itself, and a registry that lost
 * its entries (restarted, failed over) has them again in a moment.
 */
export function registrySource(registry: Pick<WorkerRegistry, 'list' | 'close'>, role: WorkerRole): AddressSource {
  /** Looks in a row that missed each. */
  const missed = new Map<string, number>();
  return {
    everyMs: LOOK_EVERY_MS,
    list: async () => {
      const found = new Set(await registry.list(role));
      for (const [address, looks] of missed) {
        if (!found.has(address) && looks + 1 >= LOOKS_MISSED) missed.delete(address);
        else missed.set(address, looks + 1);
      }
      for (const address of found) missed.set(address, 0);
      return [...missed.keys()].sort();
    },
    close: () => registry.close(),
  };
}

/**
 * Sources of the addresses of workers: given addresses, all addresses of a DNS name, or the addresses that workers have
 * written into a registry.
 */
import { lookup } from 'node:dns/promises';
import { formatHostPort } from '../../lib/process/host-port.ts';
import { isRedisUrl } from '../../lib/redis/url.ts';
import { WorkerRegistry, type WorkerRole } from '../../lib/redis/worker-registry.ts';

export interface AddressSource {
  /** host:port of every worker that the source knows. */
  list(): Promise<readonly string[]>;
  close(): void;
  /** Pause between two looks, in ms; undefined where one look is enough. */
  readonly everyMs: number | undefined;
}

/**
 * Pause between two looks, in ms: shorter than new prompts wait for a worker. In a rolling restart a worker that comes
 * up at a new address is known before the next one goes.
 */
const LOOK_EVERY_MS = 1_000;
/**
 * Looks in a row that may miss a worker before it is dropped: longer than workers take to write their entries again
 * into a registry that came back empty.
 */
const LOOKS_MISSED = 4;

/**
 * @param list host:port, dns:name:port or redis://…, as the setting has them.
 * @throws ServingError config_invalid for a bad URL.
 */
export function sourcesOf(list: readonly string[], role: WorkerRole): AddressSource[] {
  const isName = (item: string) => item.startsWith('dns:');
  const given = list.filter((item) => !isName(item) && !isRedisUrl(item));
  const names = list.filter(isName);
  const registries = list.filter(isRedisUrl);
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
      return found.map(({ address }) => formatHostPort(address, port)).sort();
    },
    close: () => {},
  };
}

/**
 * An entry counts until several looks have missed it: the worker itself is asked whether it is there, and a registry
 * that lost its entries (restarted, failed over) has them again in a moment.
 */
export function registrySource(registry: Pick<WorkerRegistry, 'list' | 'close'>, role: WorkerRole): AddressSource {
  /** Looks in a row that have missed each address. */
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

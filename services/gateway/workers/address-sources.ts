/**
 * Sources of the addresses of workers: given addresses, all addresses of a DNS name, or the addresses that workers have
 * written into a registry.
 */
import { lookup } from 'node:dns/promises';
import { formatHostPort, parseHostPort } from '../../lib/process/host-port.ts';
import type { Logger } from '../../lib/process/log.ts';
import type { SystemSecret } from '../../lib/process/system-secret.ts';
import { isRedisUrl } from '../../lib/redis/url.ts';
import type { WorkerRegistry, WorkerRole } from '../../lib/redis/worker-registry.ts';

export interface AddressSource {
  /** host:port of every worker that the source knows. */
  list(): Promise<readonly string[]>;
  close(): void;
  /** Pause between two looks, in ms; undefined where one look is enough. */
  readonly everyMs: number | undefined;
  /** How long a worker that is not listed any more is still used if it answers, in ms. */
  readonly lapseMs: number;
}

/**
 * Pause between two looks, in ms: shorter than new prompts wait for a worker. In a rolling restart a worker that comes
 * up at a new address is known before the next one goes.
 */
const LOOK_EVERY_MS = 1_000;
/**
 * An entry that is gone from a registry says little of its worker: a registry that failed over, was restarted, or
 * cannot be reached by the worker, lacks it. So a worker is used as long as it answers, for this time, in ms. The bound
 * is for a worker that registers elsewhere now: it should not serve two systems for ever.
 */
const UNREGISTERED_MS = 3_600_000;

/**
 * @param list host:port, dns:name:port or redis://…, as the setting has them.
 * @param secret by which entries of registries are known to be made by workers of this system.
 * @throws ServingError config_invalid for a bad URL.
 */
export async function sourcesOf(
  list: readonly string[],
  role: WorkerRole,
  secret: SystemSecret | undefined,
  log: Pick<Logger, 'warn'>,
): Promise<AddressSource[]> {
  const isName = (item: string) => item.startsWith('dns:');
  const given = list.filter((item) => !isName(item) && !isRedisUrl(item));
  const names = list.filter(isName);
  const registries = list.filter(isRedisUrl);
  // The client of Redis takes 90 ms of CPU time to load.
  const opened = registries.map(async (url) => {
    const { WorkerRegistry } = await import('../../lib/redis/worker-registry.ts');
    return registrySource(new WorkerRegistry(url, secret, log), role);
  });
  return [
    { everyMs: undefined, lapseMs: 0, list: async () => given, close: () => {} },
    ...names.map((name) => dnsSource(name.slice('dns:'.length))),
    ...(await Promise.all(opened)),
  ];
}

/** Every address of a name, as the system resolves it: a headless service of Kubernetes, or a name in /etc/hosts. */
export function dnsSource(hostAndPort: string, resolve: typeof lookup = lookup): AddressSource {
  const { host, port } = parseHostPort(hostAndPort)!; // the setting was checked
  return {
    everyMs: LOOK_EVERY_MS,
    lapseMs: 0,
    list: async () => {
      const found = await resolve(host, { all: true });
      return found.map(({ address }) => formatHostPort(address, port)).sort();
    },
    close: () => {},
  };
}

/** The addresses that workers of the role have written into a registry. */
function registrySource(registry: WorkerRegistry, role: WorkerRole): AddressSource {
  return {
    everyMs: LOOK_EVERY_MS,
    lapseMs: UNREGISTERED_MS,
    list: () => registry.list(role),
    close: () => registry.close(),
  };
}

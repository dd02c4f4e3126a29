/**
 * Limits who can reach a service. A service that asks nobody for proof listens on loopback only. To listen further it
 * must be able to tell who calls, or the operator must say that the network keeps strangers out.
 */
import { isIP } from 'node:net';
import { networkInterfaces } from 'node:os';
import type { ConfigOf } from './config.ts';
import { ServingError } from './errors.ts';
import { formatHostPort, parseHostPort } from './host-port.ts';
import type { PROCESS_SETTINGS } from './settings.ts';

/** Whether only this machine can reach what listens on `host`. */
export function isLoopback(host: string): boolean {
  const name = host.toLowerCase();
  if (isIP(name) === 4) return name.startsWith('127.');
  return name === 'localhost' || name === '::1' || /^::ffff:127\.\d+\.\d+\.\d+$/.test(name);
}

/** The address that a service listens on, and whether the operator said that anybody may reach it. */
export type Exposure = Pick<ConfigOf<typeof PROCESS_SETTINGS>, 'host' | 'insecureListen'>;

/**
 * @param guarded whether callers must prove who they are.
 * @param remedy the settings that make callers prove who they are.
 * @throws ServingError config_invalid
 */
export function assertGuarded({ host, insecureListen }: Exposure, guarded: boolean, remedy: string): void {
  if (guarded || insecureListen || isLoopback(host)) return;
  throw new ServingError(
    'config_invalid',
    `--host ${host} can be reached from other machines, and anybody there could use this service: set ${remedy}, ` +
      'or --insecure-listen true if the network keeps strangers out',
  );
}

/**
 * The host:port under which others reach a service that listens at `listening`. It is the operator's `advertise`, or
 * else the address itself. For an address that means all addresses of the machine it is the first that is not
 * loopback, which in a container or pod is its own.
 */
export function reachableAddress(
  listening: string,
  advertise: string,
  interfaces: ReturnType<typeof networkInterfaces> = networkInterfaces(),
): string {
  if (advertise !== '') return advertise;
  const { host, port } = parseHostPort(listening) ?? { host: '', port: 0 };
  if (host !== '0.0.0.0' && host !== '::') return listening;
  const outward = Object.values(interfaces).flatMap((all) => (all ?? []).filter(({ internal }) => !internal));
  const chosen = outward.find(({ family }) => family === 'IPv4') ?? (host === '::' ? outward[0] : undefined);
  if (chosen === undefined) return `127.0.0.1:${port}`;
  return formatHostPort(chosen.address, port);
}

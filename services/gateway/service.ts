/** A gateway in service: it finds its workers, listens, and drains when it stops. */
import type { AddressInfo } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import { formatHostPort } from '../lib/process/host-port.ts';
import { listenError } from '../lib/process/os-errors.ts';
import type { WorkerRole } from '../lib/redis/worker-registry.ts';
import { composeGateway, type GatewayParts } from './compose.ts';
import type { GatewayConfig } from './settings.ts';
import { sourcesOf } from './workers/address-sources.ts';
import { watchAddresses } from './workers/discovery.ts';

export interface Gateway {
  /** host:port */
  readonly address: string;
  /** Resolves when a first generation has succeeded; never, if none does. */
  readonly ready: Promise<void>;
  /**
   * Lets requests finish that run, or were on their way, within the drain timeout; then stops. `draining` must be
   * aborted before.
   */
  close(): Promise<void>;
}

/** Time to wait for the workers' first answers, in ms. A worker that is up answers within a few ms. */
const FIRST_ANSWERS_MS = 1_000;

/** @throws ServingError address_in_use, config_invalid (a prompt format that the tokenizer cannot write). */
export async function startGateway(config: GatewayConfig, parts: GatewayParts): Promise<Gateway> {
  const { app, pool, inflight, readiness, rollout, workersListed, closing } = composeGateway(config, parts);
  const { host, port, drainTimeoutMs } = config;
  const { log } = parts;
  const discover = async (role: WorkerRole, list: readonly string[]) => {
    const roleLog = log.child({ role });
    const onAddresses = (listed: readonly string[], lapsed: readonly string[]) => workersListed(role, listed, lapsed);
    return watchAddresses(await sourcesOf(list, role, parts.secret, roleLog), onAddresses, roleLog);
  };
  const discoveries = await Promise.all([
    discover('prefill', config.prefillWorkers),
    discover('decode', config.decodeWorkers),
  ]);
  const closeWorkers = () => {
    for (const discovery of discoveries) discovery.close();
    pool.close();
  };
  // Ask the workers before listening: otherwise the first client would get no_worker only because no worker has been
  // asked yet.
  const asked = Promise.all(discoveries.map(({ first }) => first)).then(() => pool.refresh());
  await Promise.race([asked, sleep(FIRST_ANSWERS_MS)]);
  try {
    await app.listen({ host, port });
  } catch (error) {
    closeWorkers();
    throw listenError(`--host ${host} --port ${port}`, error);
  }
  pool.watch();
  // Without a place for its state there is no rollout to follow.
  const following = parts.rolloutStore && rollout.follow(closing.signal);
  const watching = Promise.all([readiness.watch(closing.signal), following]);
  const listening = app.server.address() as AddressInfo;
  return {
    address: formatHostPort(listening.address, listening.port),
    ready: readiness.first,
    async close() {
      // The process is killed at the full time: clients that are cut off must still be told.
      const endMs = performance.now() + drainTimeoutMs * 0.9;
      await app.lastCall.over(drainTimeoutMs * 0.9);
      await inflight.drain(Math.max(0, endMs - performance.now()));
      closing.abort();
      // Every answer has been written; a client that keeps its connection open must not keep us.
      const linger = setTimeout(() => app.server.closeAllConnections(), drainTimeoutMs * 0.05);
      await app.close();
      clearTimeout(linger);
      closeWorkers();
      await watching;
    },
  };
}

/** The systems on which drills run, one after the other. Each stage needs something that this machine may lack. */

import { existsSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { ServingError } from '../../services/lib/process/errors.ts';
import { formatHostPort } from '../../services/lib/process/host-port.ts';
import { parseRedisUrl } from '../../services/lib/redis/url.ts';
import { runIndexCommand } from '../system/cli.ts';
import type { BenchModel } from '../system/model.ts';
import { findRedis, launchServer } from '../system/redis.ts';
import { owner, tenant } from '../system/tenants.ts';
import { BODY_DRILLS, RECEIVE_TIMEOUT_MS } from './bad-bodies.ts';
import { ROW_DRILLS } from './bad-rows.ts';
import { withJumpingClocks } from './clock-jumps.ts';
import { Cluster, type ClusterOptions } from './cluster.ts';
import type { DrillsOptions } from './command.ts';
import { COLOCATED_DRILLS, DRILLS, PARTITION_DRILLS, REDIS_DRILLS, watch } from './drills.ts';
import { Fleet, type FleetOptions } from './fleet.ts';
import { HOSTILE_DRILLS } from './hostile-tenants.ts';
import { INDEX_CACHE_BYTES, INDEX_DRILLS } from './index-thrash.ts';
import { Link } from './link.ts';
import { LOCAL_DRILLS } from './local-process.ts';
import { NamespaceNetwork } from './network.ts';
import { REEMBED_SHARE, REEMBEDDING_DRILLS } from './reembedding.ts';
import { COLOCATED_ROLLOUT_DRILLS, ROLLOUT_DRILLS, ROLLOUT_FLAGS } from './rollouts.ts';
import type { Drill, Scene } from './scene.ts';
import type { Reference } from './streams.ts';
import { twoHostsDrills } from './two-hosts.ts';
import { answersOf, byBundle, otherBundle, UPGRADE_DRILLS, UPGRADE_FLAGS } from './upgrade.ts';

/** A running system, with what belongs to it. */
export interface Ground
  extends Pick<Scene, 'fleet' | 'cluster' | 'storeLink' | 'redis' | 'store' | 'bundle' | 'candidate' | 'path'> {
  /** The answers that this system must give, where they are not those of the first stage. */
  readonly references?: readonly Reference[];
  close(): Promise<void>;
}

interface DrillStage {
  readonly name: string;
  readonly drills: readonly Drill[];
  /**
   * @param references the answers of the first stage; none for the first stage itself.
   * @returns the running system, or in words what this machine lacks for it.
   */
  readonly open: (references: readonly Reference[]) => Promise<Ground | string>;
}

interface StageOptions
  extends Pick<DrillsOptions, 'data' | 'path'>,
    Partial<Pick<DrillsOptions, 'redis' | 'model' | 'speculation'>> {
  /** Name of the repository in the index. */
  readonly repo: string;
}

/** All wall clocks jump by an hour, back and forth, twice a second. */
const CLOCKS: Drill = { name: 'clocks that jump', disturb: watch };

/** Slots of the length that workers have by default: what a tenant may ask for grows with it. */
const LONG_CAPACITY = 4_096;

/** Time that a retrieval may take where rows are huge: several times what it takes on a busy machine otherwise. */
const ROW_BUDGET_MS = 250;

/** @returns the stages; the first is the plain system. */
export function stagesOf(
  { bundle }: Pick<BenchModel, 'bundle'>,
  { data, redis, repo, path, model = '', speculation }: StageOptions,
): DrillStage[] {
  const indexed = new Set<string>();
  type Owned = Partial<Pick<Ground, 'storeLink' | 'redis'>> & { readonly close?: () => Promise<void> };
  const ground = async (store: string, more: Partial<FleetOptions>, own: Owned, startIn = calmly): Promise<Ground> => {
    try {
      if (!indexed.has(store)) await runIndexCommand({ bundle, store, repo, path });
      indexed.add(store);
      const fleet = await startIn(() => Fleet.start({ bundle, data, workers: 2, store, speculation, ...more }));
      const close = async () => {
        await fleet.close();
        await own.close?.();
      };
      return { bundle, path, storeLink: undefined, redis: undefined, ...own, store, fleet, close };
    } catch (error) {
      await own.close?.();
      throw error;
    }
  };
  /** Opens a system on the store that the user gave, or on LMDB. */
  const given = async (more: Partial<FleetOptions>, own: Owned = {}, startIn = calmly) => {
    if (redis === undefined) return ground(`lmdb:${resolve(data, 'drill-store')}`, more, own, startIn);
    const { link, url } = await linkTo(redis);
    const close = async () => {
      await own.close?.();
      link.close();
    };
    return ground(url, more, { ...own, storeLink: link, close }, startIn);
  };
  const ownRedis = async (more: Partial<FleetOptions> = {}) => {
    const binary = await findRedis();
    if (!binary) return 'no redis-server on PATH';
    // Its data must survive that it is killed.
    const server = await launchServer(binary, ['--appendonly', 'yes']);
    return ground(`${server.url}/0`, more, { redis: server, close: () => server.stop() });
  };
  /** An honest tenant, whose requests the drill sends, and one that attacks. */
  const tenants = [owner(), tenant('hostile')];
  const machines = async () => {
    const network = await NamespaceNetwork.open().catch((error: unknown) => ServingError.from(error));
    if (network instanceof ServingError) return network.message;
    return given({ network }, { close: () => network.close() });
  };
  const upgrade = async (references: readonly Reference[], more: Partial<FleetOptions> = {}) => {
    if (!existsSync(join(model, 'config.json'))) return 'needs a checkpoint as --model, to make another bundle of';
    const candidate = await otherBundle(model, resolve(data, 'bundles'));
    // What the candidate must answer, it answers in a system of its own.
    const store = `lmdb:${resolve(data, 'drill-store-of-candidate')}`;
    await runIndexCommand({ bundle: candidate, store, repo, path });
    const alone = await Fleet.start({ bundle: candidate, data, workers: 1, store });
    const ofCandidate = await answersOf(alone, references).finally(() => alone.close());
    const both = await given({ ...UPGRADE_FLAGS, candidate, ...more });
    try {
      return {
        ...both,
        candidate,
        references: byBundle(references, await answersOf(both.fleet, references), ofCandidate),
      };
    } catch (error) {
      await both.close();
      throw error;
    }
  };
  return [
    { name: 'a system', drills: DRILLS, open: () => given({}) },
    { name: 'colocated workers', drills: COLOCATED_DRILLS, open: () => given({ colocated: true }) },
    {
      name: 'a system with tenants',
      drills: [...HOSTILE_DRILLS, ...BODY_DRILLS, ...LOCAL_DRILLS],
      open: () => given({ tenants, capacity: LONG_CAPACITY, gateway: { receiveTimeoutMs: RECEIVE_TIMEOUT_MS } }),
    },
    {
      name: 'a gateway with little memory',
      drills: INDEX_DRILLS,
      open: () => given({ gateway: { indexCacheBytes: INDEX_CACHE_BYTES } }),
    },
    { name: 'a Redis', drills: REDIS_DRILLS, open: () => ownRedis() },
    {
      name: 'a Redis with tenants',
      drills: ROW_DRILLS,
      // Rows come from Redis, not from memory, and an operator's budget is short.
      open: () => ownRedis({ tenants, gateway: { rowCacheBytes: 0, retrievalBudgetMs: ROW_BUDGET_MS } }),
    },
    { name: 'machines', drills: PARTITION_DRILLS, open: machines },
    { name: 'two hosts', drills: twoHostsDrills(), open: () => twoHosts({ bundle, data, repo, path }) },
    {
      name: 'a rollout',
      drills: ROLLOUT_DRILLS,
      open: () => given({ gateways: 2, ...ROLLOUT_FLAGS }),
    },
    {
      name: 'a rollout of colocated workers',
      drills: COLOCATED_ROLLOUT_DRILLS,
      open: () => given({ gateways: 2, colocated: true, ...ROLLOUT_FLAGS }),
    },
    { name: 'an upgrade', drills: UPGRADE_DRILLS, open: (references) => upgrade(references) },
    {
      name: 'an upgrade that takes its time',
      drills: REEMBEDDING_DRILLS,
      open: (references) => upgrade(references, { reembedShare: REEMBED_SHARE }),
    },
    { name: 'jumping clocks', drills: [CLOCKS], open: () => given({}, {}, withJumpingClocks) },
  ];
}

async function twoHosts(options: ClusterOptions): Promise<Ground | string> {
  const cluster = await Cluster.open(options);
  if (typeof cluster === 'string') return cluster;
  const none = { storeLink: undefined, redis: undefined, store: '' };
  return { ...none, ...options, cluster, fleet: cluster, close: () => cluster.close() };
}

const calmly = <T>(start: () => Promise<T>): Promise<T> => start();

/** @returns a URL of the same Redis that leads through a link. */
async function linkTo(redis: string): Promise<{ link: Link; url: string }> {
  const { kind, tls, nodes, db } = parseRedisUrl(redis);
  if (kind !== 'single' || tls)
    throw new ServingError(
      'config_invalid',
      '--redis must be a single server without TLS: drills put a link in front of it',
    );
  const link = await Link.open();
  link.target = formatHostPort(nodes[0]!.host, nodes[0]!.port);
  const login = /^redis:\/\/([^@/]*@)?/.exec(redis)?.[1] ?? '';
  return { link, url: `redis://${login}${link.address}/${db}` };
}

/** The systems that drills are run on, one after the other: each with what its drills need, where this machine has it. */
import { resolve } from 'node:path';
import { ServingError } from '../../services/lib/process/errors.ts';
import { parseRedisUrl } from '../../services/lib/redis/url.ts';
import { type BenchModel, runCli } from '../system/model.ts';
import { findRedis, launchServer } from '../system/redis.ts';
import { withJumpingClocks } from './clock-jumps.ts';
import { COLOCATED_DRILLS, DRILLS, PARTITION_DRILLS, REDIS_DRILLS, watch } from './drills.ts';
import { Fleet, type FleetOptions } from './fleet.ts';
import { Link } from './link.ts';
import { Network } from './network.ts';
import type { Drill, Scene } from './scene.ts';

/** A running system with what belongs to it. */
export interface Ground extends Pick<Scene, 'fleet' | 'storeLink' | 'redis' | 'store' | 'bundle' | 'path'> {
  close(): Promise<void>;
}

export interface Stage {
  readonly name: string;
  readonly drills: readonly Drill[];
  /** @returns in words, what this machine lacks for it. */
  readonly open: () => Promise<Ground | string>;
}

export interface StageOptions {
  /** Folder for indexes and logs. */
  readonly data: string;
  /** What is indexed, and its name in the index. */
  readonly path: string;
  readonly repo: string;
  /** Store to use instead of LMDB; it is written to. */
  readonly redis?: string;
}

/** All clocks of the day jump by an hour, to and fro, twice a second. */
const CLOCKS: Drill = { name: 'clocks that jump', disturb: watch };

/** @returns the plain system first. */
export function stagesOf({ bundle }: Pick<BenchModel, 'bundle'>, { data, redis, repo, path }: StageOptions): Stage[] {
  const index = (store: string) =>
    runCli(['index', '--name', repo, '--path', path, '--model', bundle, '--store', store]);
  const indexed = new Set<string>();
  type Owned = Partial<Pick<Ground, 'storeLink' | 'redis'>> & { readonly close?: () => Promise<void> };
  const ground = async (store: string, more: Partial<FleetOptions>, own: Owned, startIn = calmly): Promise<Ground> => {
    try {
      if (!indexed.has(store)) await index(store);
      indexed.add(store);
      const fleet = await startIn(() => Fleet.start({ bundle, data, workers: 2, store, ...more }));
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
  /** On the store that the drills were given. */
  const given = async (more: Partial<FleetOptions>, own: Owned = {}, startIn = calmly) => {
    if (redis === undefined) return ground(`lmdb:${resolve(data, 'drill-store')}`, more, own, startIn);
    const { link, url } = await linkTo(redis);
    const close = async () => {
      await own.close?.();
      link.close();
    };
    return ground(url, more, { ...own, storeLink: link, close }, startIn);
  };
  const ownRedis = async () => {
    const binary = await findRedis();
    if (!binary) return 'no redis-server on PATH';
    // What it was told must outlive it.
    const server = await launchServer(binary, ['--appendonly', 'yes']);
    return ground(`${server.url}/0`, {}, { redis: server, close: () => server.stop() });
  };
  const machines = async () => {
    const network = await Network.open().catch((error: unknown) => ServingError.from(error));
    if (network instanceof ServingError) return network.message;
    return given({ network }, { close: () => network.close() });
  };
  return [
    { name: 'a system', drills: DRILLS, open: () => given({}) },
    { name: 'colocated workers', drills: COLOCATED_DRILLS, open: () => given({ colocated: true }) },
    { name: 'a Redis', drills: REDIS_DRILLS, open: ownRedis },
    { name: 'machines', drills: PARTITION_DRILLS, open: machines },
    { name: 'jumping clocks', drills: [CLOCKS], open: () => given({}, {}, withJumpingClocks) },
  ];
}

const calmly = <T>(start: () => Promise<T>): Promise<T> => start();

/** @returns the same Redis behind a link. */
async function linkTo(redis: string): Promise<{ link: Link; url: string }> {
  const { kind, tls, nodes, db } = parseRedisUrl(redis);
  if (kind !== 'single' || tls) throw new ServingError('config_invalid', 'drills take a single Redis without TLS');
  const link = await Link.open();
  link.target = `${nodes[0]!.host}:${nodes[0]!.port}`;
  const login = /^redis:\/\/([^@/]*@)?/.exec(redis)?.[1] ?? '';
  return { link, url: `redis://${login}${link.address}/${db}` };
}

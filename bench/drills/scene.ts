/** The type of a drill, and of what it works with. */
import type { ErrorCode } from '../../services/lib/process/errors.ts';
import type { RandomStream } from '../measure/arrivals.ts';
import type { RedisServer } from '../system/redis.ts';
import type { Cluster } from './cluster.ts';
import type { Fleet } from './fleet.ts';
import type { Link } from './link.ts';
import type { Reference } from './streams.ts';

export interface Scene {
  readonly fleet: Fleet;
  /** The same as a cluster of two hosts, if it is one. */
  readonly cluster?: Cluster | undefined;
  readonly random: RandomStream;
  readonly references: readonly Reference[];
  /** Disturbances of one kind. */
  readonly count: number;
  /** Duration of a lasting disturbance. */
  readonly seconds: number;
  /** The link in front of Redis; undefined if the store is a folder. */
  readonly storeLink: Link | undefined;
  /** The server of the store; undefined if drills may not kill it. */
  readonly redis: RedisServer | undefined;
  readonly store: string;
  readonly bundle: string;
  /** Another bundle, of which there are workers as well, if the drill has one take the place of the other. */
  readonly candidate?: string | undefined;
  /** Folder of the repository that is indexed. */
  readonly path: string;
  /**
   * Marks the beginning of a disturbance.
   * @returns a function that marks the time at which the system is whole again.
   */
  mark(): () => void;
  /** Sends some requests at once, in addition to the traffic. Resolves when they have ended. */
  burst(): Promise<unknown>;
}

export interface Drill {
  readonly name: string;
  /** Whether requests may fail while the gateway is gone or not yet back. No others may. */
  readonly mayFail?: boolean;
  /** Codes with which requests may fail that are under way between a mark and its mending. */
  readonly mayFailWith?: readonly ErrorCode[];
  /** Share of clients that leave before the end. */
  readonly leaving?: number;
  /** Longest TTFT that a request may have, in ms, if the drill limits it. */
  readonly ttftWithinMs?: number;
  /** Whether requests must keep their context, up to the share of `LOSING_CONTEXT` of judge.ts. */
  readonly keepsContext?: boolean;
  /** Says why the drill cannot be run here. */
  readonly impossible?: (scene: Pick<Scene, 'storeLink'>) => string | undefined;
  /** @returns further findings in words. @throws if the system breaks its promise. */
  readonly disturb: (scene: Scene) => Promise<string | undefined>;
}

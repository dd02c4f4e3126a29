/** What a drill is, and what it is given to work with. */
import type { RandomStream } from '../measure/arrivals.ts';
import type { RedisServer } from '../system/redis.ts';
import type { Fleet } from './fleet.ts';
import type { Link } from './link.ts';
import type { Reference } from './streams.ts';

export interface Scene {
  readonly fleet: Fleet;
  readonly random: RandomStream;
  readonly references: readonly Reference[];
  /** Disturbances of one kind. */
  readonly count: number;
  /** How long a lasting disturbance lasts. */
  readonly seconds: number;
  /** In front of Redis; undefined where the store is a folder. */
  readonly storeLink: Link | undefined;
  /** The store's own server; undefined where it is nobody's to kill. */
  readonly redis: RedisServer | undefined;
  readonly store: string;
  readonly bundle: string;
  /** Folder of the repository that is indexed. */
  readonly path: string;
  /** Says that a disturbance begins now. @returns says that all is well again. */
  mark(): () => void;
  /** Sends some requests at once, beside those that come anyway; resolves when they have ended. */
  burst(): Promise<unknown>;
}

export interface Drill {
  readonly name: string;
  /** Whether requests may fail meanwhile: those whose gateway is gone or not yet back, and nobody else's. */
  readonly mayFail?: boolean;
  /** Share of clients that vanish. */
  readonly leaving?: number;
  /** Why it cannot be run here. */
  readonly impossible?: (scene: Pick<Scene, 'storeLink'>) => string | undefined;
  /** @returns what else was found, in words; throws where it is not as promised. */
  readonly disturb: (scene: Scene) => Promise<string | undefined>;
}

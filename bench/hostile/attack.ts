/** The type of an attack, and of what it works with. */
import type { RandomStream } from '../measure/arrivals.ts';
import type { Door } from '../system/tenants.ts';
import type { Meter } from './meter.ts';

export interface AttackScene {
  readonly door: Door;
  readonly random: RandomStream;
  /** Gets what the attacker is served. */
  readonly meter: Meter;
  /** Tokens that one slot holds. */
  readonly capacity: number;
  readonly until: AbortSignal;
}

export interface Attack {
  readonly name: string;
  /** Whether the attacker always has more to ask for, and reads what it gets: then its share can be measured. */
  readonly backlogged: boolean;
  /** Resolves when the signal is aborted; refusals do not end it. */
  run(scene: AttackScene): Promise<void>;
}

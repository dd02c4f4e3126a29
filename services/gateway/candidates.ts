/** The candidate of a rollout as an arm of this gateway: opened, followed, and ended when no request has it. */
import { ServingError } from '../lib/process/errors.ts';
import type { WorkerRole } from '../lib/redis/worker-registry.ts';
import { type ArmParts, type ComposedArm, composeArm, type ServedModel } from './arm.ts';
import type { CandidateArm } from './rollout/rollout.ts';
import { SideIndexing, type SideIndexingParts } from './rollout/side-indexing.ts';
import type { RolloutState } from './rollout/state.ts';

/** The bundle of a candidate, opened. */
export interface CandidateModel extends ServedModel {
  /** Frees what was opened for it. */
  close(): Promise<void>;
}

interface CandidatesParts extends Omit<ArmParts, 'name' | 'model'> {
  /** What side indexes are made of, and the bundle beside which candidates are served. */
  readonly parts: Pick<Partial<SideIndexingParts>, 'keys' | 'store'> & {
    readonly openModel?: (state: RolloutState) => Promise<CandidateModel>;
    readonly contextFingerprint: string | undefined;
  };
}

interface Listed {
  readonly listed: readonly string[];
  readonly lapsed: readonly string[] | undefined;
}

export class Candidates {
  readonly #parts: CandidatesParts;
  /** Addresses of workers as they were told last: a candidate that comes later has them too. */
  readonly #addresses = new Map<WorkerRole, Listed>();
  readonly #arms = new Set<ComposedArm>();

  constructor(parts: CandidatesParts) {
    this.#parts = parts;
  }

  /** The newest candidate; undefined where there is none. */
  get newest(): ComposedArm | undefined {
    return [...this.#arms].at(-1);
  }

  workersListed(role: WorkerRole, listed: readonly string[], lapsed?: readonly string[]): void {
    this.#addresses.set(role, { listed, lapsed });
    for (const arm of this.#arms) arm.workersListed(role, listed, lapsed);
  }

  /** @throws ServingError for a bundle that cannot be served. */
  async open(state: RolloutState): Promise<CandidateArm> {
    const { openModel } = this.#parts.parts;
    if (openModel === undefined) throw new ServingError('config_invalid', 'this gateway has no rollouts (--rollouts)');
    const model = await openModel(state);
    const closing = new AbortController();
    const end = () => closing.abort();
    this.#parts.closing.addEventListener('abort', end, { once: true });
    const arm = composeArm({ ...this.#parts, name: 'candidate', model, closing: closing.signal });
    const { pool, readiness, journey } = arm;
    this.#arms.add(arm);
    for (const [role, { listed, lapsed }] of this.#addresses) arm.workersListed(role, listed, lapsed);
    pool.watch();
    const watching = readiness.watch(closing.signal);
    const indexing = this.#indexing(model);
    const indexed = indexing?.run(closing.signal);
    return {
      name: 'candidate',
      fingerprint: model.fingerprint,
      journey,
      problem: () => readiness.problem,
      workers: () => pool.usableWorkers,
      sideProgress: () => indexing?.progress,
      close: async () => {
        this.#parts.closing.removeEventListener('abort', end);
        this.#arms.delete(arm);
        end();
        pool.close();
        await Promise.all([watching, indexed]);
        await model.close();
      },
    };
  }

  /** Side indexes are needed where the candidate has another encoder or projector, and has an indexer to make them. */
  #indexing({ contextFingerprint, indexer }: CandidateModel): SideIndexing | undefined {
    const { parts, log } = this.#parts;
    const { store, keys } = parts;
    const isSame = contextFingerprint === undefined || contextFingerprint === parts.contextFingerprint;
    if (isSame || store === undefined || keys === undefined || indexer === undefined) return undefined;
    return new SideIndexing({ store, keys, indexer, fingerprint: contextFingerprint, log });
  }
}

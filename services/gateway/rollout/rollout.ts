/**
 * Two bundles side by side. Each has an *arm*: workers, queue, context and journey of its own (see arm.ts). A request
 * gets an arm when it is let in, and stays with it to its end, replays included: no answer mixes bundles. The candidate
 * gets a request only if that is in its share, and if the candidate has completed a trial; otherwise the bundle that
 * the gateway was started with serves it, so that a candidate whose workers are not there costs no request.
 */
import { repeatUntilAborted } from '../../lib/async/repeat.ts';
import { ServingError } from '../../lib/process/errors.ts';
import type { Logger } from '../../lib/process/log.ts';
import { metrics } from '../../lib/process/metrics.ts';
import type { Journey } from '../completion/journey.ts';
import type { SideProgress } from './side-indexing.ts';
import { type Asker, isForCandidate, type RolloutState } from './state.ts';
import type { StateStore } from './state-store.ts';

/** `stable` is the bundle that the gateway was started with. */
export type ArmName = 'stable' | 'candidate';

/** What serves requests by one bundle. */
export interface Arm {
  readonly name: ArmName;
  /** SHA-256 (hex) of the bundle. */
  readonly fingerprint: string;
  readonly journey: Pick<Journey, 'complete'>;
}

export interface CandidateArm extends Arm {
  /** Reason why its completions would fail now; undefined when they would not. */
  readonly problem: () => string | undefined;
  /** Usable workers. */
  readonly workers: () => { readonly prefill: number; readonly decode: number };
  /** undefined where no side index is made. */
  readonly sideProgress: () => SideProgress | undefined;
  /** Ends it; no request has it any more. */
  close(): Promise<void>;
}

/** An arm that a request has until `release`. */
export interface ArmLease extends Arm {
  release(): void;
}

/** What a start asks for. What it leaves out stays as it is where this bundle is the candidate already. */
export interface StartRequest
  extends Pick<RolloutState, 'bundle' | 'fingerprint'>,
    Partial<Pick<RolloutState, 'indexer' | 'share' | 'by'>> {}

/** What a new candidate gets that was not asked for. */
const AT_FIRST = { indexer: '', share: 5, by: 'session' } as const;

export interface RolloutParts {
  readonly stable: Arm;
  readonly store: StateStore;
  /** @throws ServingError for a bundle that cannot take part. */
  readonly openCandidate: (state: RolloutState) => Promise<CandidateArm>;
  readonly log: Logger;
}

export interface RolloutStatus {
  /** `done` where this gateway was started with the candidate's bundle by now. */
  readonly phase: 'none' | 'preparing' | 'canary' | 'promoted' | 'done';
  readonly stable: string;
  readonly state: RolloutState | undefined;
  /** Why the candidate serves nothing yet; undefined where it serves, or there is none. */
  readonly problem: string | undefined;
  readonly workers: { readonly prefill: number; readonly decode: number } | undefined;
  readonly index: SideProgress | undefined;
}

/** Pause before a candidate that could not be opened is tried again, in ms: its bundle may still be on its way. */
const REOPEN_MS = 10_000;
/** Pause between two looks at the state, in ms: a rollback at another gateway is heard within it. */
const LOOK_EVERY_MS = 250;

interface Opened {
  readonly state: RolloutState;
  /** undefined while it is being opened, or where that failed. */
  arm: CandidateArm | undefined;
  problem: string;
  /** When it is tried again; undefined unless it could not be opened. */
  retryAtMs?: number;
  requests: number;
  retired: boolean;
}

export class Rollout {
  readonly #parts: RolloutParts;
  #state: RolloutState | undefined;
  #candidate: Opened | undefined;
  /** Numbers the changes that this gateway makes: a look that began before one has been written tells old news. */
  #changes = 0;
  /** Changes that are being written. */
  #writing = 0;
  /** Settles when the last change has been written, or could not be. */
  #written: Promise<void> = Promise.resolve();
  #failure = '';
  /** Settles when the last candidate that was ended has ended. */
  #ending: Promise<void> = Promise.resolve();

  constructor(parts: RolloutParts) {
    this.#parts = parts;
  }

  /** The arm for a request, which has it until it is released. */
  enter(asker: Asker): ArmLease {
    const { stable } = this.#parts;
    const candidate = this.#candidate;
    if (this.#state === undefined || candidate === undefined || !isForCandidate(this.#state, asker)) {
      return { ...stable, release: () => {} };
    }
    if (candidate.arm === undefined || candidate.arm.problem() !== undefined) {
      metrics.rolloutFallbacks.inc();
      return { ...stable, release: () => {} };
    }
    candidate.requests++;
    let released = false;
    const release = () => {
      if (released) return;
      released = true;
      candidate.requests--;
      this.#closeIfOver(candidate);
    };
    const { name, fingerprint, journey } = candidate.arm;
    return { name, fingerprint, journey, release };
  }

  /** The arm that serves a request which the candidate has failed before anything of its answer was sent. */
  get fallback(): Arm {
    metrics.rolloutFallbacks.inc();
    return this.#parts.stable;
  }

  get status(): RolloutStatus {
    const state = this.#state;
    const candidate = this.#candidate;
    const problem = candidate && (candidate.arm?.problem() ?? (candidate.arm ? undefined : candidate.problem));
    const phase = () => {
      if (state === undefined) return 'none';
      if (candidate === undefined) return 'done';
      if (problem !== undefined) return 'preparing';
      return state.promoted ? 'promoted' : 'canary';
    };
    const { fingerprint: stable } = this.#parts.stable;
    const [workers, index] = [candidate?.arm?.workers(), candidate?.arm?.sideProgress()];
    return { phase: phase(), stable, state, problem, workers, index };
  }

  /**
   * Has the candidate opened and its share served, here at once and at the other gateways when they look. A stored
   * state that is damaged is overwritten.
   * @throws ServingError invalid_request for the bundle that this gateway was started with; store_unavailable where the
   *   state cannot be read, and nothing has changed then, or cannot be written, and this gateway has begun even then.
   */
  async start({ bundle, fingerprint, ...asked }: StartRequest): Promise<void> {
    if (fingerprint === this.#parts.stable.fingerprint) {
      throw new ServingError('invalid_request', `bundle: this gateway serves ${bundle} already`, { param: 'bundle' });
    }
    const read = () =>
      this.#parts.store.read().catch((error) => {
        if (ServingError.from(error).code !== 'store_invalid') throw error;
        return undefined;
      });
    await this.#changeLatest(read, (now) => {
      const kept = now?.fingerprint === fingerprint ? now : AT_FIRST;
      const { indexer = kept.indexer, share = kept.share, by = kept.by } = asked;
      return { bundle, fingerprint, indexer, share, by, promoted: false };
    });
  }

  /**
   * Has the candidate serve all requests.
   * @throws ServingError invalid_request where there is no rollout, the candidate serves nothing yet, or another one
   *   has been begun; store_invalid; store_unavailable where the state cannot be read, and nothing has changed then, or
   *   cannot be written, and this gateway has promoted it even then.
   */
  async promote(): Promise<void> {
    const { problem, state } = this.status;
    if (problem !== undefined) {
      throw new ServingError('invalid_request', `the candidate serves nothing yet (${problem}): wait, or roll back`);
    }
    const read = () => this.#parts.store.read();
    await this.#changeLatest(read, (now) => {
      if (now === undefined) throw new ServingError('invalid_request', 'no rollout is under way');
      if (now.fingerprint !== state?.fingerprint) {
        const message = `the candidate has changed, to ${now.bundle}: look at the rollout, and promote that one or roll back`;
        throw new ServingError('invalid_request', message);
      }
      return { ...now, promoted: true };
    });
  }

  /** @throws ServingError store_unavailable; this gateway has gone back even then. */
  async rollBack(): Promise<void> {
    await this.#change(undefined);
  }

  /**
   * Changes the state as all gateways have it: another one may have changed it since this one looked. Where this
   * gateway changes it while it is read, as a rollback does, it is read again, so that no change is made of an older
   * state.
   * @throws what `read` and `next` throw; ServingError store_unavailable.
   */
  async #changeLatest(
    read: () => Promise<RolloutState | undefined>,
    next: (now: RolloutState | undefined) => RolloutState,
  ): Promise<void> {
    for (;;) {
      const changes = this.#changes;
      const now = this.#writing > 0 ? this.#state : await read();
      if (changes === this.#changes) return await this.#change(next(now));
    }
  }

  /** Is in use here at once; written when the changes before it have been. */
  async #change(state: RolloutState | undefined): Promise<void> {
    this.#changes++;
    this.#writing++;
    this.#apply(state);
    const written = this.#written.then(() => this.#parts.store.write(state));
    this.#written = written.catch(() => {});
    try {
      await written;
    } finally {
      this.#writing--;
      this.#changes++;
    }
  }

  /** Follows the state until `closing` is aborted, and then ends the candidate. */
  async follow(closing: AbortSignal): Promise<void> {
    await repeatUntilAborted(closing, async () => {
      await this.#look();
      return LOOK_EVERY_MS;
    });
    this.#retire();
    await this.#ending;
  }

  async #look(): Promise<void> {
    if (this.#writing > 0) return;
    const changes = this.#changes;
    try {
      const state = await this.#parts.store.read();
      if (changes === this.#changes) this.#apply(state);
      this.#failure = '';
    } catch (error) {
      const { message } = ServingError.from(error);
      if (message !== this.#failure) this.#parts.log.warn({ err: error }, 'the state of a rollout cannot be read');
      this.#failure = message;
    }
  }

  #apply(state: RolloutState | undefined): void {
    if (JSON.stringify(state) !== JSON.stringify(this.#state)) {
      this.#parts.log.info({ rollout: state ?? null }, 'the rollout has changed');
    }
    this.#state = state;
    metrics.rolloutShare.set(state === undefined ? 0 : state.promoted ? 1 : state.share / 100);
    const open = this.#candidate?.state;
    const isSame = open?.bundle === state?.bundle && open?.indexer === state?.indexer;
    const isFailed = performance.now() >= (this.#candidate?.retryAtMs ?? Infinity);
    if (isSame && open?.fingerprint === state?.fingerprint && !isFailed) return;
    this.#retire();
    if (state !== undefined && state.fingerprint !== this.#parts.stable.fingerprint) this.#open(state);
  }

  #open(state: RolloutState): void {
    const opened: Opened = { state, arm: undefined, problem: 'it is being opened', requests: 0, retired: false };
    this.#candidate = opened;
    this.#parts.openCandidate(state).then(
      (arm) => {
        opened.arm = arm;
        this.#closeIfOver(opened);
      },
      (err) => {
        opened.problem = ServingError.from(err).message;
        opened.retryAtMs = performance.now() + REOPEN_MS;
        this.#parts.log.error({ err, bundle: state.bundle }, 'the candidate of the rollout cannot be served');
      },
    );
  }

  /** No request gets the candidate from now on; those that have it go on. */
  #retire(): void {
    const candidate = this.#candidate;
    this.#candidate = undefined;
    if (candidate === undefined) return;
    candidate.retired = true;
    this.#closeIfOver(candidate);
  }

  #closeIfOver({ arm, retired, requests }: Opened): void {
    if (!retired || requests > 0 || arm === undefined) return;
    this.#ending = arm.close().catch((err) => this.#parts.log.error({ err }, 'the candidate did not end well'));
  }
}

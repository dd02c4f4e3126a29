/**
 * Work in flight: a limit on the sequences of all completions, and the signal that ends each, with the reason why. A
 * tenant's own limits are counted in tenants/tenant-quota.ts.
 */
import { randomBytes } from 'node:crypto';
import { ServingError } from '../../lib/process/errors.ts';
import { metrics } from '../../lib/process/metrics.ts';
import type { AdmissionConfig } from './settings.ts';

export interface InflightOptions extends Pick<AdmissionConfig, 'maxInflight' | 'requestTimeoutMs'> {
  /** A tenant's share of the places, relative to the others'; 1 for all where not given. */
  readonly weightOf?: (tenant: string) => number;
  /**
   * Tells other gateways that a request of a session has been let in; each of them calls {@link
   * InflightRequests.superseded} in turn, and so does this one. Resolves with whether they were told.
   */
  readonly announce?: ((started: SessionStart) => Promise<boolean>) | undefined;
  /** Once aborted, nothing new is taken in; what runs goes on. */
  readonly draining: AbortSignal;
}

/** A request of a session has been let in. */
export interface SessionStart {
  /** Key of the session. */
  readonly session: string;
  /** Tells the request from those of all gateways. */
  readonly request: string;
}

export interface InflightRequest {
  /** Time budget of the request, in ms; the largest where not given. */
  readonly timeoutMs?: number | undefined;
  /**
   * One editor window: the latest request of a session supersedes the one before. Names of two tenants differ.
   */
  readonly session?: string | undefined;
  readonly tenant?: string;
  /** Sequences that it asks for: prompts × best_of; 1 where not given. */
  readonly sequences?: number;
  /** Whether it came before its client could know of a drain: then it is taken in during the drain, too. */
  readonly isTimely?: boolean;
}

/** Work in flight, of any kind. */
export interface TrackedWork {
  /** Aborted with the reason why it must end: client_gone, deadline_exceeded, superseded, draining. */
  readonly signal: AbortSignal;
  abort(reason: ServingError): void;
  /** The work is over. Calling it twice is harmless. */
  release(): void;
}

/** A completion's place among those in flight. */
export interface InflightPlace extends TrackedWork {
  /** Time at which its budget is spent, in ms of the monotonic clock. */
  readonly deadlineMs: number;
  /**
   * Supersedes the session's request before this one, here and at other gateways. To be called when nothing can refuse
   * the request any more: otherwise both would be lost.
   */
  supersede(): void;
}

/** A completion in flight. */
interface Running {
  /** Tells it from the requests of all gateways. */
  readonly name: string;
  /** Requests of this gateway have come in this order. */
  readonly number: number;
  readonly tenant: string;
  readonly sequences: number;
  readonly session: string | undefined;
  readonly controller: AbortController;
  /** Announcements that come from now on are of newer requests than this one. */
  announced: boolean;
}

export class InflightRequests {
  readonly #options: InflightOptions;
  readonly #name = randomBytes(9).toString('base64url');
  #number = 0;
  readonly #running = new Set<Running>();
  /** Uploads and removals. They take no place here: the indexer limits them. */
  readonly #others = new Set<AbortController>();
  /** The newest request of each session that has one in flight. */
  readonly #sessions = new Map<string, Running>();
  #whenIdle: (() => void)[] = [];

  constructor(options: InflightOptions) {
    this.#options = options;
  }

  /**
   * Takes a place for a completion.
   * @throws ServingError draining, saturated
   */
  enter({ timeoutMs, session, tenant = '', sequences = 1, isTimely = false }: InflightRequest = {}): InflightPlace {
    const { requestTimeoutMs, draining } = this.#options;
    if (!isTimely) draining.throwIfAborted();
    this.#assertRoom(tenant, sequences, session);
    const controller = new AbortController();
    const budgetMs = Math.min(timeoutMs ?? requestTimeoutMs, requestTimeoutMs);
    const limit = budgetMs < requestTimeoutMs ? 'its timeout_ms' : '--request-timeout-ms';
    const deadline = setTimeout(() => {
      controller.abort(new ServingError('deadline_exceeded', `the request took longer than ${budgetMs} ms (${limit})`));
    }, budgetMs);
    const number = ++this.#number;
    const name = `${this.#name}.${number}`;
    const running: Running = { name, number, tenant, sequences, session, controller, announced: false };
    this.#running.add(running);
    this.#observe();
    return {
      signal: controller.signal,
      deadlineMs: performance.now() + budgetMs,
      abort: (reason) => controller.abort(reason),
      supersede: () => this.#supersede(running),
      release: () => {
        clearTimeout(deadline);
        if (session !== undefined && this.#sessions.get(session) === running) this.#sessions.delete(session);
        this.#running.delete(running);
        this.#observe();
        this.#resolveIfIdle();
      },
    };
  }

  /**
   * Some gateway, perhaps this one, has let in a request of a session: an older one in flight here ends. Announcements
   * of all gateways come in one order to all of them, so that of two requests only the older one ends, at whichever
   * gateways they are: one that was let in here and whose own announcement is still to come is the newer one.
   * @param started a {@link SessionStart}, if its form is right.
   */
  superseded(started: unknown): void {
    const { session, request } = (started ?? {}) as Partial<Record<keyof SessionStart, unknown>>;
    if (typeof session !== 'string') return;
    const running = this.#sessions.get(session);
    if (running === undefined) return;
    if (running.name === request) running.announced = true;
    else if (running.announced) running.controller.abort(supersededReason());
  }

  #supersede(running: Running): void {
    const { session, number, name, controller } = running;
    if (session === undefined || controller.signal.aborted) return;
    const other = this.#sessions.get(session);
    // A request that came later may have been let in sooner: the limits of its tenant are asked for elsewhere.
    if (other !== undefined && other.number > number) {
      controller.abort(supersededReason());
      return;
    }
    other?.controller.abort(supersededReason());
    this.#sessions.set(session, running);
    void this.#options.announce?.({ session, request: name }).then((told) => {
      running.announced ||= !told; // it will not come back
    });
  }

  /** @throws ServingError saturated */
  #assertRoom(tenant: string, sequences: number, session: string | undefined): void {
    const { maxInflight } = this.#options;
    // Neither requests that were aborted, which are about to end, nor the one that it supersedes may keep it out.
    const earlier = session === undefined ? undefined : this.#sessions.get(session);
    const others = [...this.#running].filter((other) => !other.controller.signal.aborted && other !== earlier);
    // Where nothing is in flight any one request is taken in, whatever its size. It then counts as the limit, since its
    // tenant chose that size, and others must still come in.
    const counted = (running: Iterable<Running>) => sum(running, maxInflight);
    const asked = Math.min(sequences, maxInflight);
    const inFlight = counted(others);
    if (inFlight === 0 || inFlight + asked <= maxInflight) return;
    // A tenant that stays within its share, or that has nothing, is not kept out by tenants that have more, until there
    // are twice as many sequences: otherwise each of many tenants, one after the other, would add its share to what is
    // there.
    const own = counted(others.filter((other) => other.tenant === tenant));
    const isDue = own === 0 || own + asked <= this.#shareOf(tenant, others);
    if (isDue && inFlight + asked <= 2 * maxInflight) return;
    throw new ServingError(
      'saturated',
      `${sum(others)} sequences are in flight, and the request asks for ${sequences}: --max-inflight is ${maxInflight}`,
      { retryAfterSeconds: 1, limit: 'max-inflight' },
    );
  }

  #shareOf(tenant: string, others: readonly Running[]): number {
    const { maxInflight, weightOf = () => 1 } = this.#options;
    const tenants = new Set([tenant, ...others.map((other) => other.tenant)]);
    const weights = [...tenants].reduce((total, each) => total + weightOf(each), 0);
    return (maxInflight * weightOf(tenant)) / weights;
  }

  #observe(): void {
    metrics.inflight.set(this.#running.size);
    metrics.sequencesInflight.set(sum(this.#running));
  }

  /**
   * Lets in work that is not a completion: it takes no place and has no budget.
   * @throws ServingError draining
   */
  track(): TrackedWork {
    this.#options.draining.throwIfAborted();
    const controller = new AbortController();
    this.#others.add(controller);
    return {
      signal: controller.signal,
      abort: (reason) => controller.abort(reason),
      release: () => {
        this.#others.delete(controller);
        this.#resolveIfIdle();
      },
    };
  }

  /** Waits until nothing is in flight; work that is still in flight after `timeoutMs` is aborted. */
  async drain(timeoutMs: number): Promise<void> {
    if (this.#idle) return;
    const idle = new Promise<void>((resolve) => this.#whenIdle.push(resolve));
    const timer = setTimeout(() => {
      const reason = new ServingError('draining', 'the gateway is shutting down and the request took too long');
      const controllers = [...this.#running].map(({ controller }) => controller);
      for (const controller of [...controllers, ...this.#others]) controller.abort(reason);
    }, timeoutMs);
    await idle;
    clearTimeout(timer);
  }

  get #idle(): boolean {
    return this.#running.size + this.#others.size === 0;
  }

  #resolveIfIdle(): void {
    if (this.#idle) for (const resolve of this.#whenIdle.splice(0)) resolve();
  }
}

/** @param most as which a request with more sequences counts. */
const sum = (running: Iterable<Running>, most = Infinity) =>
  [...running].reduce((total, { sequences }) => total + Math.min(sequences, most), 0);

const supersededReason = () => new ServingError('superseded', 'a newer request of the same session came');

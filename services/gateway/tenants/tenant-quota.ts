/**
 * Holds requests to the limits of their tenants. With a ledger in Redis the limits are those of all gateways together;
 * while Redis is away or slow they are this gateway's own: no request is refused, or waits longer than
 * {@link ANSWER_MS}, because of Redis. Tenants without limits never wait for it.
 */
import { randomBytes } from 'node:crypto';
import { CircuitBreaker } from '../../lib/async/circuit.ts';
import { startLateTimer } from '../../lib/async/late-timer.ts';
import type { Logger } from '../../lib/process/log.ts';
import { metrics } from '../../lib/process/metrics.ts';
import type { CompletionRequest } from '../request.ts';
import { demandOf } from './demand.ts';
import type { TenantLedger } from './tenant-ledger.ts';
import { type Demand, refusalOf, type Standing, TenantAccounts, type TenantLimits } from './token-quota.ts';

export interface TenantQuotaOptions {
  /** undefined where the limits are this gateway's own. */
  readonly ledger?: Pick<TenantLedger, 'admit' | 'settle' | 'renew'> | undefined;
  /** Positions of one slot; 0 as long as it is not known. */
  readonly capacity: () => number;
  /** Soft tokens of one chunk; 1 if not given. */
  readonly softPerChunk?: number | undefined;
  readonly log: Pick<Logger, 'info' | 'warn'>;
}

/** A request that asks to be let in. */
export interface QuotaRequest {
  readonly tenant: string;
  readonly limits: TenantLimits;
  /** Key of the session that it belongs to. */
  readonly session: string | undefined;
  readonly completion: CompletionRequest;
}

/** A request's share of its tenant's limits. */
export interface Reservation {
  /**
   * The request has ended. Calling it twice is harmless.
   * @param tokens that it took, of prompts and output together.
   */
  settle(tokens: number): void;
}

/** Time after which requests in flight of a gateway that was killed do not count any more, in ms. */
export const LEASE_MS = 10_000;
const RENEW_EVERY_MS = LEASE_MS / 4;
/** Longest wait for the ledger, in ms: an answer takes about 1. */
const ANSWER_MS = 50;

const NOTHING: Reservation = { settle: () => {} };

/**
 * Tokens that are divided or put together, for each that a tenant is charged with. Reading costs far less than
 * computing: a core divides 1 to 3 million tokens a second. The charge bounds how much of the gateway's time it takes.
 */
const READ_TOKENS_PER_TOKEN = 100;

const isUnlimited = ({ maxInflight, tokensPerMinute }: TenantLimits) =>
  maxInflight === undefined && tokensPerMinute === undefined;

export class TenantQuota {
  readonly #options: TenantQuotaOptions;
  readonly #accounts = new TenantAccounts();
  readonly #circuit = new CircuitBreaker();
  readonly #name = randomBytes(9).toString('base64url');
  #number = 0;
  /** Requests that have been let in and not been settled. */
  readonly #granted = new Set<Demand>();
  #renewing: NodeJS.Timeout | undefined;

  constructor(options: TenantQuotaOptions) {
    this.#options = options;
  }

  /**
   * Reserves what a request may take; the caller settles it.
   * @throws ServingError quota_exceeded; invalid_request for a request that is larger than a limit as such.
   */
  async reserve({ tenant, limits, session, completion }: QuotaRequest): Promise<Reservation> {
    if (isUnlimited(limits)) return NOTHING;
    const { capacity, softPerChunk } = this.#options;
    const asked = demandOf(completion, limits, capacity() || Infinity, softPerChunk);
    return this.#admit({ tenant, limits, session, ...asked });
  }

  /**
   * Reserves what a text may take that is only divided into tokens, or put together from them. It counts as one
   * sequence in flight, and as a hundredth of its tokens.
   * @param tokens that it has, about. The reservation is settled with those that it had.
   * @throws ServingError quota_exceeded.
   */
  async reserveReading({ tenant, limits }: Pick<QuotaRequest, 'tenant' | 'limits'>, tokens: number) {
    if (isUnlimited(limits)) return NOTHING;
    const charge = (read: number) => Math.ceil(read / READ_TOKENS_PER_TOKEN);
    const reserved = Math.min(charge(tokens), limits.tokensPerMinute ?? 0);
    const { settle } = await this.#admit({ tenant, limits, session: undefined, sequences: 1, reserved });
    return { settle: (read: number) => settle(charge(read)) };
  }

  async #admit(asked: Omit<Demand, 'id'>): Promise<Reservation> {
    const demand: Demand = { id: `${this.#name}.${++this.#number}`, ...asked };
    // What this gateway alone has let in is never more than what all have: its own refusal needs no question.
    const own = this.#accounts.admit(demand);
    if (own.refusedBy !== undefined) throw refusalOf(demand, own);
    const shared = await this.#ask(demand);
    metrics.limitChecks.inc({ where: shared === undefined ? 'local' : 'shared' });
    if (shared?.refusedBy !== undefined) {
      this.#accounts.settle(demand, 0);
      throw refusalOf(demand, shared);
    }
    this.#granted.add(demand);
    this.#keepRenewing();
    const settle = (tokens: number) => {
      if (!this.#granted.delete(demand)) return;
      this.#accounts.settle(demand, tokens);
      // Whether or not Redis knows of the request, the tokens are taken off the bucket there.
      this.#options.ledger?.settle(demand, tokens).catch(() => {});
    };
    return { settle };
  }

  /** @returns undefined where the ledger cannot say. */
  async #ask(demand: Demand): Promise<Standing | undefined> {
    const { ledger } = this.#options;
    const beganMs = performance.now();
    if (ledger === undefined || !this.#circuit.allows(beganMs)) return undefined;
    this.#circuit.tried(beganMs);
    let stopTimer = () => {};
    const late = new Promise<Error>((resolve) => {
      stopTimer = startLateTimer(ANSWER_MS, () => resolve(new Error(`no answer within ${ANSWER_MS} ms`)));
    });
    const answer = ledger.admit(demand).catch((error: Error) => error);
    const standing = await Promise.race([answer, late]).finally(stopTimer);
    const wasOpen = this.#circuit.open;
    if (standing instanceof Error) {
      this.#circuit.failed(performance.now(), beganMs);
      if (!wasOpen && this.#circuit.open) {
        this.#options.log.warn(
          { err: standing },
          'Redis does not answer: this gateway grants the limits of tenants alone',
        );
      }
      return undefined;
    }
    this.#circuit.succeeded();
    if (wasOpen)
      this.#options.log.info('Redis answers again: the limits of tenants are those of all gateways together');
    return standing;
  }

  /** Renews the leases of what is in flight, as long as there is any. */
  #keepRenewing(): void {
    const { ledger } = this.#options;
    if (this.#renewing !== undefined || ledger === undefined) return;
    this.#renewing = setInterval(() => {
      for (const demands of this.#grantedByTenant()) ledger.renew(demands).catch(() => {});
      if (this.#granted.size > 0) return;
      clearInterval(this.#renewing);
      this.#renewing = undefined;
    }, RENEW_EVERY_MS).unref();
  }

  #grantedByTenant(): [Demand, ...Demand[]][] {
    const tenants = new Map<string, [Demand, ...Demand[]]>();
    for (const demand of this.#granted) {
      const demands = tenants.get(demand.tenant);
      if (demands) demands.push(demand);
      else tenants.set(demand.tenant, [demand]);
    }
    return [...tenants.values()];
  }
}

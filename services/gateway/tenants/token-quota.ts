/**
 * The limits of a tenant and its account: the sequences that it has in flight, and a bucket of the tokens of one
 * minute. What a request costs is known at its end, so what it may cost is reserved before, and settled then: tokens
 * that it did not take go back into the bucket. Over any time a tenant gets its rate and one minute's worth.
 *
 * These are the accounts of one gateway. They know no clock but the caller's. tenant-ledger.ts keeps the same accounts
 * for all gateways in Redis.
 */
import { ServingError } from '../../lib/process/errors.ts';

export interface TenantLimits {
  /** Sequences (prompts × best_of) in flight at once. */
  readonly maxInflight?: number | undefined;
  /** Tokens of prompts and output together. */
  readonly tokensPerMinute?: number | undefined;
}

export const UNLIMITED: TenantLimits = {};

/** What a request asks of its tenant's account. */
export interface Demand {
  /** Names the request among those of all gateways: the gateway's name, a dot, and a number. */
  readonly id: string;
  readonly tenant: string;
  readonly limits: TenantLimits;
  /** Key of its session, without spaces. */
  readonly session: string | undefined;
  readonly sequences: number;
  /** Tokens that are reserved until it is known what it took; 0 where the tenant has no limit on tokens. */
  readonly reserved: number;
}

/** What a request finds in the account of its tenant. */
export interface Standing {
  /** The limit that keeps it out; undefined where it is let in. */
  readonly refusedBy: 'max-inflight' | 'tokens-per-minute' | undefined;
  /** Sequences of the tenant in flight, without the request's own. */
  readonly inFlight: number;
  /** Tokens in the bucket; below 0 where requests took more than was reserved for them. */
  readonly tokens: number;
}

interface Account {
  readonly entries: Map<string, Demand>;
  tokens: number;
  atMs: number;
}

const MINUTE_MS = 60_000;

export class TenantAccounts {
  readonly #accounts = new Map<string, Account>();
  readonly #now: () => number;

  /** @param now monotonic clock, in ms. */
  constructor(now: () => number = () => performance.now()) {
    this.#now = now;
  }

  /** Lets a request in and reserves what it may take, if the tenant's limits allow that. */
  admit(demand: Demand): Standing {
    const account = this.#account(demand);
    const { entries, tokens } = account;
    let inFlight = 0;
    for (const { sequences, session } of entries.values()) {
      // Older requests of the same session are all at this gateway, which ends them as it lets this one in.
      if (session === undefined || session !== demand.session) inFlight += sequences;
    }
    const { maxInflight = Infinity, tokensPerMinute } = demand.limits;
    let refusedBy: Standing['refusedBy'];
    if (inFlight + demand.sequences > maxInflight) refusedBy = 'max-inflight';
    else if (tokensPerMinute !== undefined && tokens < demand.reserved) refusedBy = 'tokens-per-minute';
    else {
      entries.set(demand.id, demand);
      account.tokens -= demand.reserved;
    }
    return { refusedBy, inFlight, tokens };
  }

  /** @param tokens that the request took in the end, of prompts and output together. */
  settle(demand: Demand, tokens: number): void {
    const account = this.#account(demand);
    const reserved = account.entries.delete(demand.id) ? demand.reserved : 0;
    account.tokens = Math.min(demand.limits.tokensPerMinute ?? 0, account.tokens + reserved - tokens);
  }

  /** There are no more accounts than tenants with limits in the file of keys. */
  #account({ tenant, limits: { tokensPerMinute = 0 } }: Demand): Account {
    const atMs = this.#now();
    const account = this.#accounts.get(tenant) ?? { entries: new Map(), tokens: tokensPerMinute, atMs };
    this.#accounts.set(tenant, account);
    account.tokens += ((atMs - account.atMs) / MINUTE_MS) * tokensPerMinute;
    account.tokens = Math.min(tokensPerMinute, account.tokens);
    account.atMs = atMs;
    return account;
  }
}

/** The refusal of a request that has not been let in. */
export function refusalOf({ tenant, limits, sequences, reserved }: Demand, standing: Standing): ServingError {
  if (standing.refusedBy === 'max-inflight') {
    return new ServingError(
      'quota_exceeded',
      `tenant ${tenant} has ${standing.inFlight} of its ${limits.maxInflight} sequences in flight, and the request ` +
        `asks for ${sequences} (prompts × best_of)`,
      { limit: 'max-inflight', retryAfterSeconds: 1 },
    );
  }
  const { tokensPerMinute = 1 } = limits;
  return new ServingError(
    'quota_exceeded',
    `tenant ${tenant} has ${Math.floor(standing.tokens)} of its ${tokensPerMinute} tokens a minute left, and the ` +
      `request may take ${reserved}`,
    {
      limit: 'tokens-per-minute',
      retryAfterSeconds: Math.max(1, Math.ceil(((reserved - standing.tokens) / tokensPerMinute) * 60)),
    },
  );
}

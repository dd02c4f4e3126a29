/**
 * Tokens per minute of each tenant: a bucket that holds the tokens of one minute. The cost of a request is known at its
 * end, so the bucket may fall below zero; then the tenant's requests are refused until it has filled up again. Over any
 * longer time a tenant gets its rate, and beyond it at most what it may have in flight at once.
 */
import { ServingError } from '../../lib/process/errors.ts';

export interface TenantLimits {
  /** Requests in flight at once. */
  readonly maxInflight?: number | undefined;
  /** Tokens of prompts and output together. */
  readonly tokensPerMinute?: number | undefined;
}

export const UNLIMITED: TenantLimits = {};

interface Bucket {
  tokens: number;
  atMs: number;
}

const MINUTE_MS = 60_000;

export class TokenQuota {
  readonly #buckets = new Map<string, Bucket>();
  readonly #now: () => number;

  /** @param now monotonic clock, in ms. */
  constructor(now: () => number = () => performance.now()) {
    this.#now = now;
  }

  /** @throws ServingError quota_exceeded while the tenant owes tokens. */
  assertWithin(tenant: string, { tokensPerMinute }: TenantLimits): void {
    if (tokensPerMinute === undefined) return;
    const { tokens } = this.#filled(tenant, tokensPerMinute);
    if (tokens > 0) return;
    throw new ServingError('quota_exceeded', `tenant ${tenant} has used its ${tokensPerMinute} tokens a minute`, {
      limit: 'tokens-per-minute',
      retryAfterSeconds: Math.max(1, Math.ceil(((1 - tokens) / tokensPerMinute) * 60)),
    });
  }

  /** @param tokens cost of a request of the tenant, prompt and output together. */
  spend(tenant: string, { tokensPerMinute }: TenantLimits, tokens: number): void {
    if (tokensPerMinute !== undefined) this.#filled(tenant, tokensPerMinute).tokens -= tokens;
  }

  #filled(tenant: string, tokensPerMinute: number): Bucket {
    const atMs = this.#now();
    const { tokens, atMs: before } = this.#buckets.get(tenant) ?? { tokens: tokensPerMinute, atMs };
    const bucket = {
      tokens: Math.min(tokensPerMinute, tokens + ((atMs - before) / MINUTE_MS) * tokensPerMinute),
      atMs,
    };
    this.#buckets.set(tenant, bucket);
    return bucket;
  }
}

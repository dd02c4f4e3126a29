/**
 * API keys: they say who sends a request, and which repositories are theirs. A file holds the keys, as hashes. Without
 * a file nobody needs a key, and everybody is the default tenant. A repository that a key may not use does not exist
 * for that key.
 */
import { createHash, timingSafeEqual } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { z } from 'zod';
import { ServingError } from '../../lib/process/errors.ts';
import { metrics, tenantLabel } from '../../lib/process/metrics.ts';
import { reasonOf } from '../../lib/process/os-errors.ts';
import { DEFAULT_TENANT, repoKey } from '../../lib/rag/store/repo-key.ts';
import { type TenantLimits, UNLIMITED } from './token-quota.ts';

/** What a key may do; each level includes those before it. See http/access.ts for the routes. */
export const ACCESS_LEVELS = ['complete', 'index', 'admin'] as const;
export type Access = (typeof ACCESS_LEVELS)[number];

export interface Identity {
  /** The owner of repositories: those of two tenants never meet, whatever their names are. */
  readonly tenant: string;
  readonly limits: TenantLimits;
  readonly access: Access;
  /** Whether the file of keys says that the key has access `admin`, and not nothing. */
  readonly isOperator?: boolean;
  /** The repository of requests that name none. */
  readonly defaultRepo?: string | undefined;
  /** Tells the key from the tenant's other ones; the same at all gateways. */
  readonly keyId?: string;
  mayUse(repo: string): boolean;
}

export interface ApiKeys {
  /** All tenants that have a key. */
  readonly tenants: readonly string[];
  /**
   * @param key as Node decodes a header: as latin1, byte for byte; undefined where the request has none.
   * @throws ServingError invalid_api_key, api_key_expired
   */
  identify(key: string | undefined): Identity;
}

/** The keys of a file. */
export interface FileKeys extends ApiKeys {
  /** By tenant: when the first of its keys ends that have an end, in seconds since 1970. */
  readonly firstEnds: ReadonlyMap<string, number>;
}

/**
 * The keys of a file that is read again when it changes. A request keeps the identity that it began with; the next one
 * is judged by the newest file that was right.
 */
export class RenewedKeys implements ApiKeys {
  #keys: ApiKeys;

  constructor(keys: ApiKeys) {
    this.#keys = keys;
  }

  get tenants(): readonly string[] {
    return this.#keys.tenants;
  }

  identify(key: string | undefined): Identity {
    return this.#keys.identify(key);
  }

  renew(keys: ApiKeys): void {
    this.#keys = keys;
  }
}

/** Tells when keys end, as a metric, so that whoever is to replace them hears of it in time. */
export function noteKeys({ firstEnds }: Pick<FileKeys, 'firstEnds'>): void {
  metrics.apiKeyNotAfter.reset();
  // Of tenants that share the label `other`, the first end counts.
  const soonestFirst = [...firstEnds].sort(([, a], [, b]) => b - a);
  for (const [tenant, seconds] of soonestFirst) metrics.apiKeyNotAfter.set({ tenant: tenantLabel(tenant) }, seconds);
}

/** Nobody needs a key. */
export const NO_KEYS: FileKeys = {
  tenants: [DEFAULT_TENANT],
  firstEnds: new Map(),
  identify: () => ({
    tenant: DEFAULT_TENANT,
    limits: UNLIMITED,
    access: 'admin',
    isOperator: true,
    mayUse: () => true,
  }),
};

const limit = z.int().min(1).optional();
const keysFile = z
  .array(
    z.strictObject({
      /** SHA-256 of the key's UTF-8 bytes, in hex. */
      key_sha256: z
        .string()
        .regex(/^[0-9a-fA-F]{64}$/, 'must be 64 hexadecimal digits')
        .toLowerCase(),
      tenant: z.string().refine((tenant) => isRepoKey(tenant, 'x'), 'is not a tenant name (letters, digits, "_", "-")'),
      repos: z.array(
        z.string().refine((name) => name === '*' || isRepoKey(DEFAULT_TENANT, name), 'is not a repository name'),
      ),
      /** The repository of requests that name none: editors that cannot be told one. */
      default_repo: z.string().optional(),
      /** Most sequences (prompts × best_of) of the tenant in flight, with any of its keys; no limit where not given. */
      max_inflight: limit,
      tokens_per_minute: limit,
      /** Everything where not given, as before there were levels. */
      access: z.enum(ACCESS_LEVELS, { error: `must be one of ${ACCESS_LEVELS.join(', ')}` }).optional(),
      /** From this moment on the key is refused; a date alone is its first moment, in UTC. Never where not given. */
      expires: z
        .union([z.iso.date(), z.iso.datetime({ offset: true })], {
          error: 'must be a date, or a time with its zone: 2027-03-31 or 2027-03-31T18:00:00+02:00',
        })
        .transform((text) => Date.parse(text))
        .optional(),
    }),
  )
  .superRefine((entries, context) => {
    for (const [i, entry] of entries.entries()) {
      const refuse = (field: string, message: string) =>
        context.addIssue({ code: 'custom', path: [i, field], message });
      const earlier = entries.slice(0, i);
      if (earlier.some((other) => other.key_sha256 === entry.key_sha256)) refuse('key_sha256', 'is listed twice');
      const { default_repo: named, repos } = entry;
      if (
        named !== undefined &&
        (!isRepoKey(DEFAULT_TENANT, named) || !(repos.includes('*') || repos.includes(named)))
      ) {
        refuse('default_repo', 'is not the name of a repository that this key may use');
      }
      const same = earlier.find((other) => other.tenant === entry.tenant);
      for (const field of ['max_inflight', 'tokens_per_minute'] as const) {
        if (same && same[field] !== entry[field]) refuse(field, `must be the same for all keys of ${entry.tenant}`);
      }
    }
  });

function isRepoKey(tenant: string, name: string): boolean {
  try {
    repoKey(tenant, name);
    return true;
  } catch {
    return false;
  }
}

/**
 * @param file JSON: [{ key_sha256, tenant, repos: ["*"] or names, default_repo?, max_inflight?, tokens_per_minute?,
 *   access?, expires? }]; '' for no keys.
 * @param nowMs the time of day, in ms since 1970: keys end on a date.
 * @throws ServingError config_invalid
 */
export async function loadApiKeys(file: string, nowMs: () => number = Date.now): Promise<FileKeys> {
  if (file === '') return NO_KEYS;
  let entries: z.infer<typeof keysFile>;
  try {
    entries = keysFile.parse(JSON.parse(await readFile(file, 'utf8')));
  } catch (cause) {
    const issue = cause instanceof z.ZodError ? cause.issues[0] : undefined;
    const why = issue ? `${issue.path.join('.')} ${issue.message}` : reasonOf(cause);
    throw new ServingError('config_invalid', `--api-keys-file ${file}: ${why}`, { cause });
  }
  const keys = entries.map(({ key_sha256, tenant, repos, access, expires, ...entry }) => {
    const identity: Identity = {
      tenant,
      limits: { maxInflight: entry.max_inflight, tokensPerMinute: entry.tokens_per_minute },
      access: access ?? 'admin',
      isOperator: access === 'admin',
      defaultRepo: entry.default_repo,
      keyId: key_sha256.slice(0, 16),
      mayUse: (repo: string) => repos.includes('*') || repos.includes(repo),
    };
    return { digest: Buffer.from(key_sha256, 'hex'), identity, expires };
  });
  const firstEnds = new Map<string, number>();
  for (const { tenant, expires } of entries) {
    if (expires !== undefined) firstEnds.set(tenant, Math.min(expires / 1000, firstEnds.get(tenant) ?? Infinity));
  }
  return {
    firstEnds,
    tenants: [...new Set(entries.map(({ tenant }) => tenant))],
    identify(key) {
      if (key === undefined) throw new ServingError('invalid_api_key', 'the request has no API key');
      const digest = createHash('sha256').update(key, 'latin1').digest();
      // All keys are compared, each in constant time: the time that this takes tells nothing about them.
      const matching = keys.filter((each) => timingSafeEqual(each.digest, digest));
      const [found] = matching;
      if (!found) throw new ServingError('invalid_api_key', 'the API key is not in the file of keys');
      if (found.expires !== undefined && nowMs() >= found.expires) {
        const at = new Date(found.expires).toISOString();
        throw new ServingError('api_key_expired', `the API key ended at ${at}`);
      }
      return found.identity;
    },
  };
}

/**
 * The key under which the store knows a repository that a client names.
 * @throws ServingError invalid_request for a string that is not a name; repo_not_found for a repository that this
 *   client may not use, in the same words as for one that does not exist.
 */
export function storeKey(identity: Identity, name: string, param: string): string {
  try {
    const key = repoKey(identity.tenant, name);
    if (!identity.mayUse(name)) throw new ServingError('repo_not_found', `there is no index of ${name}`);
    return key;
  } catch (error) {
    const { code, message } = ServingError.from(error);
    throw new ServingError(code, message, { param });
  }
}

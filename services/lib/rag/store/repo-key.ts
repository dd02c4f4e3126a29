/** The name that a client gives a repository, and the key made from it, which no two tenants share. */
import { createHash } from 'node:crypto';
import { ServingError } from '../../process/errors.ts';

/** `owner/name` or `name`, in characters that are safe in a key, a path and a URL. */
const NAME = /^[A-Za-z0-9_][A-Za-z0-9_.-]*(\/[A-Za-z0-9_][A-Za-z0-9_.-]*)*$/;
const NAME_LENGTH = 200;
const TENANT = /^[A-Za-z0-9_][A-Za-z0-9_-]{0,63}$/;
/** The tenant of all requests if no API keys are set up. */
export const DEFAULT_TENANT = 'default';

/**
 * The key under which stores know a tenant's repository: `name` for the default tenant, `tenant:name` for others. Names
 * hold no colon, so no key belongs to two tenants. Every repository name that a client sends passes through here.
 * @throws ServingError invalid_request for a text that is not a name.
 */
export function repoKey(tenant: string, name: string): string {
  if (!TENANT.test(tenant))
    throw new ServingError(
      'config_invalid',
      `${JSON.stringify(tenant)} is not a tenant's name: use letters, digits, "_" and "-", at most 64 characters`,
    );
  if (name.length > NAME_LENGTH || !NAME.test(name)) {
    throw new ServingError(
      'invalid_request',
      `repository name ${JSON.stringify(name.slice(0, NAME_LENGTH))} must be letters, digits, "_", "-", "." and "/", ` +
        `with no part starting with "." or "-", and at most ${NAME_LENGTH} characters`,
      { param: 'repo' },
    );
  }
  return tenant === DEFAULT_TENANT ? name : `${tenant}:${name}`;
}

/** The tenant of a key. */
export const tenantOf = (key: string) => (key.includes(':') ? key.slice(0, key.indexOf(':')) : DEFAULT_TENANT);
/** The tenant's own name for the repository of a key. */
export const nameOf = (key: string) => key.slice(key.indexOf(':') + 1);

/**
 * The key of a repository's side index: the same chunks with the vectors of another encoder and projector than those of
 * its own index, while one takes the place of the other. No name that a client gives has an `@`, so none is such a key.
 * @param fingerprint of encoder and projector.
 */
export const sideKey = (repo: string, fingerprint: string) =>
  `${repo}@${createHash('sha256').update(fingerprint).digest('hex').slice(0, 16)}`;

const SIDE = /@[0-9a-f]{16}$/;
export const isSideKey = (key: string) => SIDE.test(key);
/** The key of the repository that a side index is of; any other key as it is. */
export const mainKey = (key: string) => key.replace(SIDE, '');

/** @throws ServingError invalid_request for a text that is not a key of a repository, or of a side index. */
export function assertRepoKey(key: string): void {
  const repo = mainKey(key);
  repoKey(tenantOf(repo), nameOf(repo));
}

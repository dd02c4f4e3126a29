/** The name that a client gives a repository, and the key made from it, which no two tenants share. */
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

/** @throws ServingError invalid_request for a text that is not a key of a repository. */
export function assertRepoKey(key: string): void {
  repoKey(tenantOf(key), nameOf(key));
}

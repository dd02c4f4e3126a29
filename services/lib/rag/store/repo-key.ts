/** What a repository is called: by a client, and as a key that no two tenants share. */
import { ServingError } from '../../process/errors.ts';

/** `owner/name`, `name`: what is safe in a key, a path and a URL. */
const NAME = /^[A-Za-z0-9_][A-Za-z0-9_.-]*(\/[A-Za-z0-9_][A-Za-z0-9_.-]*)*$/;
const NAME_LENGTH = 200;
const TENANT = /^[A-Za-z0-9_][A-Za-z0-9_-]{0,63}$/;
/** Who everybody is where no API keys are set up. */
export const DEFAULT_TENANT = 'default';

/**
 * The key under which stores know a tenant's repository: `name` for the default tenant, `tenant:name` for others. Names
 * hold no colon, so none of one tenant is one of another. Whatever a client calls a repository passes through here.
 * @throws ServingError invalid_request for what is no name.
 */
export function repoKey(tenant: string, name: string): string {
  if (!TENANT.test(tenant)) throw new ServingError('config_invalid', `${JSON.stringify(tenant)} is no tenant's name`);
  if (name.length > NAME_LENGTH || !NAME.test(name)) {
    throw new ServingError(
      'invalid_request',
      `repository name ${JSON.stringify(name.slice(0, NAME_LENGTH))} must be letters, digits, "_", "-", "." and "/", ` +
        `no part starting with "." or "-", at most ${NAME_LENGTH} characters`,
      { param: 'repo' },
    );
  }
  return tenant === DEFAULT_TENANT ? name : `${tenant}:${name}`;
}

/** The tenant of a key. */
export const tenantOf = (key: string) => (key.includes(':') ? key.slice(0, key.indexOf(':')) : DEFAULT_TENANT);
/** What the tenant calls the repository of a key. */
export const nameOf = (key: string) => key.slice(key.indexOf(':') + 1);

/** @throws ServingError invalid_request for what is no key of a repository. */
export function assertRepoKey(key: string): void {
  repoKey(tenantOf(key), nameOf(key));
}

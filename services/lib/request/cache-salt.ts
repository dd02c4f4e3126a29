/**
 * The salt of a prompt, as it goes to prefill workers: only prompts of the same salt share KV. It begins with the name
 * of the tenant, so that tenants share none, and so that a worker knows whose prompts it keeps.
 */

/** @param chosen what the client chose to narrow sharing further; '' if it chose nothing. */
export const cacheSaltOf = (tenant: string, chosen: string) => `${tenant}\n${chosen}`;

/** The tenant of a salt, whatever its client chose. */
export const tenantOfSalt = (salt: string) => salt.split('\n', 1)[0]!;

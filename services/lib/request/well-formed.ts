/**
 * The one rule for strings from clients that become keys. UTF-8 has no form for half of a surrogate pair: on its way to
 * a worker or into a hash it becomes U+FFFD, so two keys that differ would become the same one.
 */

/** Whether a string is whole characters, so that no two of them have the same UTF-8. */
export const isWellFormed = (text: string): boolean => !/\p{Surrogate}/u.test(text);

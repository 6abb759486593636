//! The join token: `<id>.<secret>.<fingerprint of the cluster CA>`. Parsing only.

/// A token taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Token {
    pub(crate) id: String,
    secret: String,
    /// Lower-case hex SHA-256 of the CA's DER.
    pub(crate) fingerprint: String,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "the token is malformed: expected <id>.<secret>.<fingerprint>, which are 6 characters, 16 characters and \
     64 hexadecimal digits; copy the whole line that `controlplane token create` printed"
)]
pub(crate) struct TokenError;

impl Token {
    pub(crate) fn parse(text: &str) -> Result<Token, TokenError> {
        let parts: Vec<&str> = text.trim().split('.').collect();
        let [id, secret, fingerprint] = parts[..] else { return Err(TokenError) };
        let plain = |text: &str, length: usize| {
            text.len() == length
                && text.bytes().all(|b| b.is_ascii_digit() || b.is_ascii_lowercase())
        };
        let hex = fingerprint.len() == 64 && fingerprint.bytes().all(|b| b.is_ascii_hexdigit());
        if !plain(id, 6) || !plain(secret, 16) || !hex {
            return Err(TokenError);
        }
        Ok(Token {
            id: id.to_owned(),
            secret: secret.to_owned(),
            fingerprint: fingerprint.to_ascii_lowercase(),
        })
    }

    /// What goes into the Authorization header.
    pub(crate) fn bearer(&self) -> String {
        format!("Bearer {}.{}", self.id, self.secret)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens() {
        let good = format!("abc123.0123456789abcdef.{}", "0A".repeat(32));
        let token = Token::parse(&format!(" {good}\n")).unwrap();
        assert_eq!(token.bearer(), "Bearer abc123.0123456789abcdef");
        assert_eq!(token.fingerprint, "0a".repeat(32));
        for bad in ["", "a.b.c", "abc123.0123456789abcdef", "ABC123.0123456789abcdef.00"] {
            assert_eq!(Token::parse(bad), Err(TokenError), "{bad}");
        }
    }
}
